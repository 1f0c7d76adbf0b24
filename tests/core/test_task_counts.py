"""Groups to tasks, iteration by iteration."""

from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.routing import task_counts

weights = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 9), min_size=1)


def test_counts_by_hand():
    dealt = [task_counts({"a": 3, "b": 1}, 2, iteration) for iteration in range(4)]
    assert [counts["a"] + counts["b"] for counts in dealt] == [2] * 4
    assert sum(counts["a"] for counts in dealt) == 6
    assert task_counts({"a": 1, "b": 1}, 4, 5) == {"a": 2, "b": 2}


@given(weights, st.integers(1, 9), st.integers(0, 300))
def test_an_iteration_always_deals_all_its_groups(shares, total, iteration):
    counts = task_counts(shares, total, iteration)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 0


@given(weights, st.integers(1, 9), st.integers(1, 40))
def test_shares_over_the_whole_run_are_exact_to_one_group(shares, total, iterations):
    dealt = [task_counts(shares, total, iteration) for iteration in range(iterations)]
    for task, weight in shares.items():
        due = total * iterations * weight / sum(shares.values())
        assert abs(sum(counts[task] for counts in dealt) - due) < 1 + 1e-6
