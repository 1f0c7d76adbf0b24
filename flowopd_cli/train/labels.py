"""What frozen adapters say at the policy's latents: rows of several of them in one forward, where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.base import FlowModel

MIXED_TOKENS = 2048


@dataclass(frozen=True)
class Teacher:
    """An adapter that labels trajectories, with the guidance it was trained for."""

    adapter: str | None
    guidance: float


def parcels(
    teachers: Sequence[Teacher], tokens: int, batch: int, *, classifier_free: bool = True
) -> list[Int[Tensor, " n"]]:
    """Which rows go through the base together: ``teachers`` has each row's, ``tokens`` is what a row has of them.

    Rows stay with those of their adapter, at most ``batch`` in a forward. Adapters share a forward while it holds at
    most 2048 tokens, both halves of a guided row counted where guidance is ``classifier_free``: below that a forward
    costs by its number, above it by its size, and the detour of mixed rows is lost (docs/performance.md).
    """
    made: list[list[int]] = []
    places = {name: i for i, name in enumerate(dict.fromkeys(teacher.adapter for teacher in teachers))}
    order = sorted(range(len(teachers)), key=lambda row: places[teachers[row].adapter])
    for _, run in groupby(order, key=lambda row: teachers[row].adapter):
        rows = list(run)
        joined = [*made[-1], *rows] if made else rows
        forwards = sum(2 if classifier_free and teachers[row].guidance != 1 else 1 for row in joined)
        if made and len(joined) <= batch and forwards * tokens <= MIXED_TOKENS:
            made[-1] = joined
            continue
        pieces = -(-len(rows) // batch)
        made += [part.tolist() for part in torch.tensor(rows).chunk(pieces)]
    return [torch.tensor(rows) for rows in made]


def row_cost(model: FlowModel, latents: Float[Tensor, "*n C H W"], cond: Conditioning) -> int:
    """:func:`tokens_of` a row for :func:`parcels`; where the model cannot mix adapters, too many for two to share."""
    return tokens_of(latents, cond) if model.adapters.mixes else MIXED_TOKENS + 1


def tokens_of(latents: Float[Tensor, "*n C H W"], cond: Conditioning) -> int:
    """What one row is to a transformer of 2 x 2 patches: its picture's tokens and its text's."""
    return latents.shape[-2] * latents.shape[-1] // 4 + cond.embeds.shape[1]


@torch.no_grad()
def velocity_of(
    model: FlowModel,
    teachers: Sequence[Teacher],
    latents: Float[Tensor, "b C H W"],
    sigma: Float[Tensor, " b"],
    cond: Conditioning,
) -> Float[Tensor, "b C H W"]:
    """Each row's velocity by its own teacher, in one forward: a mixed batch where there are several adapters."""
    names, scales = [t.adapter for t in teachers], [t.guidance for t in teachers]
    if len(set(names)) > 1:
        return model.velocity(latents, sigma, cond, guidance=scales, adapters=names)
    with model.adapters.use(names[0]):
        return model.velocity(latents, sigma, cond, guidance=scales[0] if len(set(scales)) == 1 else scales)
