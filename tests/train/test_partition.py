"""What a process has of a shared draw, and the statistics that all of them see."""

import math

import pytest
import torch

from flowopd_cli.core.types import RewardResult
from flowopd_cli.train.collect import deal_samples
from flowopd_cli.train.partition import Partition, assign_groups

GROUP = torch.tensor([0, 0, 1, 1, 2, 2])
ROWS = (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3]))
TOTAL = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
VALID = torch.tensor([True, False, True, True, True, False])


def result(rows, **scores):
    return RewardResult(TOTAL[rows], {name: value[rows] for name, value in scores.items()}, VALID[rows])


def shares(*values):
    """One partition a process; gathering gives the ``values`` that all of them pass."""
    return [Partition(rows, 6, lambda value: list(values)) for rows in ROWS]


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_of_a_step_is_exactly_one_processs(seed):
    samples = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:4]
    one, two = shares()
    mine = [partition.rows[partition.local_rows(samples)].tolist() for partition in (one, two)]
    assert sorted(mine[0] + mine[1]) == sorted(samples.tolist())
    for own in mine:
        assert own == [sample for sample in samples.tolist() if sample in own]


def test_the_whole_is_in_the_order_of_the_draw_with_nan_for_what_was_not_asked():
    ocr = torch.arange(6.0)
    results = [result(ROWS[0], ocr=ocr), result(ROWS[1])]
    tasks = [["a", "a", "c", "c"], ["b", "b"]]
    passed = [
        (rows, GROUP[rows], labels, r.total, r.valid, dict(r.scores))
        for rows, labels, r in zip(ROWS, tasks, results, strict=True)
    ]
    for partition, own, labels in zip(shares(*passed), results, tasks, strict=True):
        found, group, names = partition.gather_scores(own, GROUP[partition.rows], labels)
        assert names == ("a", "a", "b", "b", "c", "c")
        assert torch.equal(found.total, TOTAL)
        assert torch.equal(found.valid, VALID)
        assert torch.equal(group, GROUP)
        assert [math.isnan(value) for value in found.scores["ocr"]] == [False, False, True, True, False, False]


def busiest(owner, group, deal, processes):
    """Samples of the process with most of them, over all optimizer steps."""
    return sum(int(torch.bincount(torch.tensor(owner)[group[step]], minlength=processes).max()) for step in deal)


@pytest.mark.parametrize(("groups", "size", "updates", "processes"), [(8, 12, 2, 2), (48, 24, 2, 8), (64, 1, 4, 8)])
def test_processes_get_equal_shares_of_every_optimizer_step(groups, size, updates, processes):
    group = torch.arange(groups).repeat_interleave(size)
    for seed in range(5):
        deal = deal_samples(len(group), updates, seed)
        owner = assign_groups(group, deal, processes)
        assert torch.bincount(torch.tensor(owner)).tolist() == [groups // processes] * processes
        least = sum(len(step) / processes for step in deal)
        assert busiest(owner, group, deal, processes) <= 1.01 * least
        assert busiest(owner, group, deal, processes) <= busiest(
            [g % processes for g in range(groups)], group, deal, processes
        )


@pytest.mark.parametrize(("groups", "processes"), [(1, 1), (1, 3), (3, 2), (5, 8), (7, 7)])
def test_every_group_has_one_owner_and_no_process_two_more_than_another(groups, processes):
    group = torch.arange(groups).repeat_interleave(2)
    owner = assign_groups(group, deal_samples(len(group), 3, 0), processes)
    counts = torch.bincount(torch.tensor(owner), minlength=processes)
    assert len(owner) == groups
    assert len(counts) == processes
    assert counts.max() - counts.min() <= 1


def test_samples_are_dealt_by_the_seed_alone():
    assert sorted(torch.cat(deal_samples(7, 3, 5)).tolist()) == list(range(7))
    assert all(torch.equal(a, b) for a, b in zip(deal_samples(7, 3, 5), deal_samples(7, 3, 5), strict=True))
    assert torch.cat(deal_samples(7, 3, 5)).tolist() != torch.cat(deal_samples(7, 3, 6)).tolist()
