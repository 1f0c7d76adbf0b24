"""Groups to tasks, iteration by iteration."""

from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.prompts.sampler import task_counts

weights = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 9), min_size=1)


def test_counts_by_hand():
    dealt = [task_counts({"a": 3, "b": 1}, 2, iteration) for iteration in range(4)]
    assert [counts["a"] + counts["b"] for counts in dealt] == [2] * 4
    assert sum(counts["a"] for counts in dealt) == 6
    assert task_counts({"a": 1, "b": 1}, 4, 5) == {"a": 2, "b": 2}


@given(weights, st.integers(1, 9), st.integers(0, 10**6))
def test_an_iteration_deals_all_its_groups_each_task_its_share_to_one(shares, total, iteration):
    counts = task_counts(shares, total, iteration)
    assert list(counts) == list(shares)
    assert sum(counts.values()) == total
    for task, weight in shares.items():
        assert counts[task] >= 0
        assert abs(counts[task] - total * weight / sum(shares.values())) < 1 + 1e-6


@given(weights, st.integers(1, 9), st.integers(100, 1000))
def test_shares_of_a_whole_run_are_those_asked_for(shares, total, iterations):
    dealt = [task_counts(shares, total, iteration) for iteration in range(iterations)]
    for task, weight in shares.items():
        due = total * iterations * weight / sum(shares.values())
        assert abs(sum(counts[task] for counts in dealt) - due) < 3  # groups, of hundreds
