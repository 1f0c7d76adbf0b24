"""The sampler of groups, and the split of groups over tasks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.prompts.sampler import GroupSampler, task_counts


def pool(task, count, tags=("t",)):
    return [Prompt(f"{task}{i}", f"{task}{i}", task, {"tag": tags[i % len(tags)]}) for i in range(count)]


def sampler(**changes):
    fields = {"prompts": {"a": pool("a", 20), "b": pool("b", 20)}, "weights": {"a": 3.0, "b": 1.0}}
    return GroupSampler(**{**fields, "groups": 8, "group_size": 3, "seed": 5, **changes})


def test_a_draw_depends_on_seed_and_iteration_alone():
    assert sampler().draw(4) == sampler().draw(4)
    assert sampler().draw(4) != sampler().draw(5)
    assert sampler().draw(4) != sampler(seed=6).draw(4)


def test_tasks_mix_by_their_weights():
    prompts, group, seeds = sampler().draw(0)
    assert Counter(p.task for p in prompts) == {"a": 18, "b": 6}
    assert Counter(group) == dict.fromkeys(range(8), 3)
    assert len(set(seeds)) == 24
    assert all(prompts[i].id == prompts[j].id for i in range(24) for j in range(24) if group[i] == group[j])


def test_a_prompt_that_is_drawn_twice_makes_two_groups():
    prompts, group, seeds = sampler(prompts={"a": pool("a", 1)}, weights={"a": 1.0}, groups=2, group_size=2).draw(0)
    assert len({prompt.id for prompt in prompts}) == 1
    assert group == [0, 0, 1, 1]
    assert len(set(seeds)) == 4


def test_tags_are_drawn_evenly():
    tagged = sampler(prompts={"a": pool("a", 30, tags=("x", "x", "y"))}, weights={"a": 1.0}, group_size=1)
    assert Counter(p.metadata["tag"] for p in tagged.draw(0)[0]) == {"x": 4, "y": 4}


def test_spares_are_other_prompts_of_the_groups_task():
    drawn, group, seeds = sampler().draw(3)
    task_of = {g: prompt.task for prompt, g in zip(drawn, group, strict=True)}
    tried = [5, 0, 5, 2, 7, 1]
    spares = sampler().spares(3, tried)
    assert [prompt.task for prompt, _ in spares] == [task_of[g] for g in tried]
    ids = [prompt.id for prompt, _ in spares]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {prompt.id for prompt in drawn}
    noise = [seed for _, own in spares for seed in own]
    assert len(set(noise) | set(seeds)) == 6 * 3 + 24


def test_spares_depend_on_seed_iteration_and_the_groups_before_alone():
    assert sampler().spares(3, [5, 0, 5]) == sampler().spares(3, [5, 0, 5])
    assert sampler().spares(3, [5, 0, 5, 2])[:3] == sampler().spares(3, [5, 0, 5])
    assert sampler().spares(3, [5]) != sampler().spares(4, [5])
    assert sampler().spares(3, [5]) != sampler(seed=6).spares(3, [5])


@pytest.mark.parametrize("count", [1, 2, 9])
def test_spares_come_again_when_all_were_taken(count):
    few = sampler(prompts={"a": pool("a", count)}, weights={"a": 1.0})
    spares = [prompt.id for prompt, _ in few.spares(0, [0] * 6)]
    assert len(spares) == 6
    left = {p.id for p in pool("a", count)} - {p.id for p in few.draw(0)[0]}
    assert set(spares) == (left or {p.id for p in pool("a", count)})


WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 9), min_size=1)


def test_counts_by_hand():
    assert sum(task_counts({"a": 3, "b": 1}, 2, iteration)["a"] for iteration in range(4)) == 6
    assert task_counts({"a": 1, "b": 1}, 4, 5) == {"a": 2, "b": 2}


@given(WEIGHTS, st.integers(1, 9), st.integers(0, 10**6))
def test_an_iteration_splits_all_its_groups_each_count_within_one_of_its_share(shares, total, iteration):
    counts = task_counts(shares, total, iteration)
    assert list(counts) == list(shares)
    assert sum(counts.values()) == total
    for task, weight in shares.items():
        assert counts[task] >= 0
        assert abs(counts[task] - total * weight / sum(shares.values())) < 1 + 1e-6


@given(WEIGHTS, st.integers(1, 9), st.integers(100, 1000))
def test_counts_of_a_whole_run_follow_the_weights(shares, total, iterations):
    splits = [task_counts(shares, total, iteration) for iteration in range(iterations)]
    for task, weight in shares.items():
        due = total * iterations * weight / sum(shares.values())
        assert abs(sum(counts[task] for counts in splits) - due) < 3  # groups, of hundreds


def test_alternating_iterations_have_one_task_each_by_weight():
    prompts = {task: [Prompt(f"{task}{i}", f"{task} {i}", task) for i in range(9)] for task in "ab"}
    sampler = GroupSampler(prompts, {"a": 2.0, "b": 1.0}, 4, 2, 0, alternating=True)
    tasks = [{prompt.task for prompt in sampler.draw(iteration)[0]} for iteration in range(60)]
    assert all(len(found) == 1 for found in tasks)
    assert 39 <= sum(found == {"a"} for found in tasks) <= 41
    assert len(sampler.draw(5)[0]) == 8
    assert sampler.draw(5) == sampler.draw(5)
