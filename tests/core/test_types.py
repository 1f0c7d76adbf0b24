"""Records: row indexing, concatenation, moves, and the shapes they insist on."""

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import (
    Conditioning,
    GaussianStep,
    Loss,
    RewardResult,
    Rollout,
    StepBatch,
    Trajectory,
    index_rows,
)


def conditioning(rows=3, offset=0.0):
    embeds = torch.arange(rows).float().view(rows, 1, 1).expand(rows, 2, 4) + offset
    return Conditioning(embeds, embeds[:, 0], torch.ones(rows, 2, dtype=torch.bool), -embeds, -embeds[:, 0])


def batch(rows=3, **fields):
    numbers = torch.arange(rows).float()
    latents = numbers.view(rows, 1, 1, 1).expand(rows, 2, 2, 2)
    return StepBatch(latents, latents + 1, numbers, numbers / 2, conditioning(rows), **fields)


def trajectory(rows=2, steps=3):
    states, probabilities = torch.zeros(rows, steps + 1, 4, 2, 2), torch.zeros(rows, steps)
    return Trajectory(states, torch.linspace(1, 0, steps + 1), probabilities, torch.ones(steps, dtype=torch.bool))


@pytest.mark.parametrize("rows", [torch.tensor([2, 0, 2]), slice(1, 3)])
def test_indexing_takes_the_same_rows_of_every_tensor(rows):
    chosen, numbers = batch(advantage=torch.arange(3).float())[rows], torch.arange(3).float()[rows]
    assert chosen.latents[:, 0, 0, 0].tolist() == numbers.tolist()
    assert chosen.advantage.tolist() == numbers.tolist()
    assert chosen.cond.embeds[:, 0, 0].tolist() == numbers.tolist()
    assert chosen.cond.neg_pooled[:, 0].tolist() == (-numbers).tolist()
    assert len(chosen) == len(chosen.cond) == len(numbers)


def test_what_is_missing_stays_missing():
    chosen = index_rows(batch(), slice(0, 1))
    assert chosen.target_velocity is chosen.advantage is chosen.old_log_prob is None
    assert Conditioning(torch.zeros(2, 1, 1))[0:1].pooled is None


def test_conditionings_are_joined_row_by_row():
    joined = Conditioning.cat([conditioning(2), conditioning(1, offset=10)])
    assert joined.embeds[:, 0, 0].tolist() == [0.0, 1.0, 10.0]
    assert joined.neg_embeds[:, 0, 0].tolist() == [0.0, -1.0, -10.0]
    assert len(joined.mask) == 3
    assert Conditioning.cat([Conditioning(torch.zeros(1, 1, 1))] * 2).mask is None


def test_a_conditioning_moves_as_a_whole():
    moved = conditioning().to("meta")
    assert {getattr(moved, f.name).device.type for f in dataclasses.fields(moved)} == {"meta"}
    assert Conditioning(torch.zeros(1, 1, 1)).to("meta").pooled is None


def test_records_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch().sigma = torch.zeros(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt("id", "text", "task").task = "other"


def test_final_is_the_last_state():
    states = torch.arange(8).float().view(2, 4, 1, 1, 1)
    ends = Trajectory(states, torch.linspace(1, 0, 4), None, torch.zeros(3, dtype=torch.bool)).final
    assert ends.flatten().tolist() == [3.0, 7.0]


def test_a_rollout_holds_pictures_larger_than_its_latents():
    prompts = (Prompt("0", "text", "task"),) * 2
    rolled = Rollout(prompts, torch.zeros(2, dtype=torch.int64), conditioning(2), trajectory())
    pictures = dataclasses.replace(rolled, images=torch.zeros(2, 3, 16, 16), target_velocity=torch.zeros(2, 3, 4, 2, 2))
    assert pictures.images.shape[-1] == 8 * pictures.trajectory.latents.shape[-1]


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


def test_a_loss_has_no_metrics_unless_given():
    assert Loss(torch.zeros(()), 1).metrics == {}
    assert Prompt("id", "text", "task").metadata == {}


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
