"""Records: row indexing, concatenation, moves, and the shapes they insist on."""

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError

from flowopd_cli.core.types import (
    Conditioning,
    GaussianStep,
    RewardResult,
    StepBatch,
)


def conditioning(rows=3, offset=0.0):
    embeds = torch.arange(rows).float().view(rows, 1, 1).expand(rows, 2, 4) + offset
    mask = torch.tensor([True, False]).expand(rows, 2)
    return Conditioning(embeds, embeds[:, 0], mask, -embeds, -embeds[:, 0], ~mask)


def batch(rows=3, **fields):
    numbers = torch.arange(rows).float()
    latents = numbers.view(rows, 1, 1, 1).expand(rows, 2, 2, 2)
    return StepBatch(latents, latents + 1, numbers, numbers / 2, conditioning(rows), **fields)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0, 2]), slice(1, 3)])
def test_indexing_takes_the_same_rows_of_every_tensor(rows):
    chosen, numbers = batch(advantage=torch.arange(3).float())[rows], torch.arange(3).float()[rows]
    assert chosen.latents[:, 0, 0, 0].tolist() == numbers.tolist()
    assert chosen.advantage.tolist() == numbers.tolist()
    assert chosen.cond.embeds[:, 0, 0].tolist() == numbers.tolist()
    assert chosen.cond.neg_pooled[:, 0].tolist() == (-numbers).tolist()
    assert len(chosen) == len(chosen.cond) == len(numbers)


def test_conditionings_are_joined_row_by_row():
    joined = Conditioning.cat([conditioning(2), conditioning(1, offset=10)])
    assert joined.embeds[:, 0, 0].tolist() == [0.0, 1.0, 10.0]
    assert joined.neg_embeds[:, 0, 0].tolist() == [0.0, -1.0, -10.0]
    assert len(joined.mask) == 3
    assert Conditioning.cat([Conditioning(torch.zeros(1, 1, 1))] * 2).mask is None


def test_both_halves_and_the_tokens_without_padding():
    cond = conditioning()
    for half, sign, mask in ((cond.positive, 1, [True, False]), (cond.negative, -1, [False, True])):
        assert half.embeds[2].tolist() == [[2.0 * sign] * 4] * 2
        assert half.pooled[2].tolist() == [2.0 * sign] * 4
        assert half.mask[2].tolist() == mask
        assert [row.shape for row in half.unpadded()] == [(1, 4)] * 3
    assert [row.shape for row in Conditioning(torch.zeros(1, 5, 4)).unpadded()] == [(5, 4)]
    with pytest.raises(ValueError, match="empty prompt"):
        _ = Conditioning(torch.zeros(1, 5, 4)).negative


def test_a_conditioning_moves_as_a_whole():
    moved = conditioning().to("meta")
    assert {getattr(moved, f.name).device.type for f in dataclasses.fields(moved)} == {"meta"}
    assert Conditioning(torch.zeros(1, 1, 1)).to("meta").pooled is None


@pytest.mark.parametrize(
    "fields",
    [{"advantage": torch.zeros(3, 1)}, {"old_log_prob": torch.zeros(2)}, {"target_velocity": torch.zeros(3, 2)}],
)
def test_labels_of_another_shape_are_refused(fields):
    with pytest.raises(TypeCheckError):
        batch(**fields)


def test_a_step_needs_one_deviation_a_row():
    with pytest.raises(TypeCheckError):
        GaussianStep(torch.zeros(2, 1, 2, 2), torch.zeros(2))


def scores(total, details=(), **columns):
    valid = torch.ones(len(total), dtype=torch.bool)
    return RewardResult(torch.tensor(total), {k: torch.tensor(v) for k, v in columns.items()}, valid, details)


def test_scores_of_several_lots_are_joined_with_nan_for_what_one_lacks():
    one, two = scores([1.0, 2.0], ({"x": 1}, {}), ocr=[0.5, 0.25]), scores([3.0], quality=[0.75])
    joined = RewardResult.cat([one, two])
    assert joined.total.tolist() == [1.0, 2.0, 3.0]
    assert joined.scores["ocr"].tolist()[:2] == [0.5, 0.25]
    assert joined.scores["ocr"][2].isnan()
    assert joined.scores["quality"].isnan().tolist() == [True, True, False]
    assert joined.details == ({"x": 1}, {}, {})
    picked = joined[torch.tensor([2, 0])]
    assert (picked.total.tolist(), picked.details) == ([3.0, 1.0], ({}, {"x": 1}))
    assert len(RewardResult.cat([])) == 0
