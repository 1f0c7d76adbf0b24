"""What a process has of a shared draw, and the statistics that all of them see."""

import math

import pytest
import torch

from flowopd_cli.core.types import RewardResult
from flowopd_cli.train.share import Share

GROUP = torch.tensor([0, 0, 1, 1, 2, 2])
ROWS = (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3]))
TOTAL = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
VALID = torch.tensor([True, False, True, True, True, False])


def result(rows, **scores):
    return RewardResult(TOTAL[rows], {name: value[rows] for name, value in scores.items()}, VALID[rows])


def shares(*values):
    """One share a process; gathering gives the ``values`` that all of them pass."""
    return [Share(rows, 6, lambda value: list(values)) for rows in ROWS]


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_of_a_step_is_exactly_one_processs(seed):
    samples = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:4]
    one, two = shares()
    mine = [share.rows[share.mine(samples)].tolist() for share in (one, two)]
    assert sorted(mine[0] + mine[1]) == sorted(samples.tolist())
    for own in mine:
        assert own == [sample for sample in samples.tolist() if sample in own]


def test_a_process_may_have_none_of_a_step():
    assert shares()[1].mine(torch.tensor([5, 0])).tolist() == []


def test_the_whole_is_in_the_order_of_the_draw_with_nan_for_what_was_not_asked():
    ocr = torch.arange(6.0)
    results = [result(ROWS[0], ocr=ocr), result(ROWS[1])]
    passed = [(rows, GROUP[rows], r.total, r.valid, dict(r.scores)) for rows, r in zip(ROWS, results, strict=True)]
    for share, own in zip(shares(*passed), results, strict=True):
        found, group = share.whole(own, GROUP[share.rows])
        assert torch.equal(found.total, TOTAL)
        assert torch.equal(found.valid, VALID)
        assert torch.equal(group, GROUP)
        assert [math.isnan(value) for value in found.scores["ocr"]] == [False, False, True, True, False, False]
