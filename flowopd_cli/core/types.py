"""The records that flow through every stage.

Conventions (docs/conventions.md): ``sigma`` in [0, 1] with 1 = noise, ``x_sigma = (1 - sigma) x0 + sigma eps``,
``velocity = eps - x0 = dx/dsigma``. B rollouts, b micro-batch rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowopd_cli.core.prompt import Prompt

Record = TypeVar("Record")


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row each. ``neg_*`` is the empty prompt, present when guidance may be used.

    ``mask`` is true for the tokens of a prompt and false for padding; ``None`` if all tokens are the prompt's, or the
    family makes no difference.
    """

    embeds: Float[Tensor, "B L D"]
    pooled: Float[Tensor, "B P"] | None = None
    mask: Bool[Tensor, "B L"] | None = None
    neg_embeds: Float[Tensor, "B L D"] | None = None
    neg_pooled: Float[Tensor, "B P"] | None = None
    neg_mask: Bool[Tensor, "B L"] | None = None

    @property
    def positive(self) -> Conditioning:
        """The prompts alone."""
        return Conditioning(self.embeds, self.pooled, self.mask)

    @property
    def negative(self) -> Conditioning:
        """The rows of the empty prompt.

        Raises :class:`ValueError`: there are none.
        """
        if self.neg_embeds is None:
            raise ValueError("guidance needs the empty prompt's rows in the conditioning")
        return Conditioning(self.neg_embeds, self.neg_pooled, self.neg_mask)

    def unpadded(self) -> list[Float[Tensor, "n D"]]:
        """The embeddings of each prompt without those of its padding."""
        if self.mask is None:
            return list(self.embeds)
        return list(self.embeds[self.mask].split(self.mask.sum(dim=1).tolist()))

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def __getitem__(self, rows: Int[Tensor, " b"] | slice) -> Conditioning:
        return index_rows(self, rows)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate the rows of several conditionings."""
        columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Conditioning)}
        return replace(parts[0], **{name: torch.cat(c) for name, c in columns.items() if c[0] is not None})

    def to(self, device: torch.device | str) -> Conditioning:
        """The same rows on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class GaussianStep:
    """One transition ``N(mean, std^2)``; ``std`` already includes ``sqrt(-dt)`` and is 0 for an ODE step."""

    mean: Float[Tensor, "B C H W"]
    std: Float[Tensor, "B 1 1 1"]


@dataclass(frozen=True)
class Trajectory:
    """The states one rollout visited. ``stochastic[t]`` says whether step t drew noise; ``velocities`` are optional."""

    latents: Float[Tensor, "B T1 C H W"]
    sigmas: Float[Tensor, " T1"]
    log_probs: Float[Tensor, "B T"] | None
    stochastic: Bool[Tensor, " T"]
    velocities: Float[Tensor, "B T C H W"] | None = None

    @property
    def final(self) -> Float[Tensor, "B C H W"]:
        """The last latents, which the decoder turns into pictures."""
        return self.latents[:, -1]

    def __getitem__(self, rows: Int[Tensor, " b"]) -> Trajectory:
        columns = {"log_probs": self.log_probs, "velocities": self.velocities}
        known = {name: column[rows] for name, column in columns.items() if column is not None}
        return replace(self, latents=self.latents[rows], **known)

    @staticmethod
    def cat(parts: Sequence[Trajectory]) -> Trajectory:
        """Trajectories of the same grid, stacked along the batch."""
        columns = {name: [getattr(part, name) for part in parts] for name in ("latents", "log_probs", "velocities")}
        return replace(parts[0], **{name: torch.cat(c) for name, c in columns.items() if c[0] is not None})


@dataclass(frozen=True)
class Rollout:
    """A trajectory with its prompts and the labels added by collection."""

    prompts: tuple[Prompt, ...]
    group: Int[Tensor, " B"]
    cond: Conditioning
    trajectory: Trajectory
    images: Float[Tensor, "B 3 Y X"] | None = None
    rewards: RewardResult | None = None
    advantages: Float[Tensor, " B"] | None = None
    target_velocity: Float[Tensor, "B T C H W"] | None = None
    anchor_velocity: Float[Tensor, "B T C H W"] | None = None
    anchor_weight: Float[Tensor, " T"] | None = None

    def __getitem__(self, rows: Int[Tensor, " b"]) -> Rollout:
        return replace(index_rows(replace(self, anchor_weight=None), rows), anchor_weight=self.anchor_weight)


@dataclass(frozen=True)
class StepBatch:
    """Rows of one optimizer micro-step: any mixture of samples and time steps.

    ``weight`` is that of each row's loss, ``anchor_weight`` the anchor's in it (1 if ``None``); where all of the latter
    are 0, its velocity is not needed. ``old_velocity`` is that of the policy that drew, ``slow_velocity`` that of the
    policy's slow copy. ``prompts`` are those of the rows.
    """

    latents: Float[Tensor, "b C H W"]
    next_latents: Float[Tensor, "b C H W"]
    sigma: Float[Tensor, " b"]
    sigma_next: Float[Tensor, " b"]
    cond: Conditioning
    target_velocity: Float[Tensor, "b C H W"] | None = None
    anchor_velocity: Float[Tensor, "b C H W"] | None = None
    old_velocity: Float[Tensor, "b C H W"] | None = None
    slow_velocity: Float[Tensor, "b C H W"] | None = None
    old_log_prob: Float[Tensor, " b"] | None = None
    advantage: Float[Tensor, " b"] | None = None
    weight: Float[Tensor, " b"] | None = None
    anchor_weight: Float[Tensor, " b"] | None = None
    prompts: tuple[Prompt, ...] | None = None

    def __len__(self) -> int:
        return self.latents.shape[0]

    def __getitem__(self, rows: Int[Tensor, " b"] | slice) -> StepBatch:
        return index_rows(self, rows)

    def to(self, device: torch.device | str) -> StepBatch:
        """The same rows on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class RewardResult:
    """Scores of B pictures. Where ``valid`` is false the score means nothing and must not be averaged."""

    total: Float[Tensor, " B"]
    scores: Mapping[str, Float[Tensor, " B"]]
    valid: Bool[Tensor, " B"]
    details: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, rows: Int[Tensor, " b"]) -> RewardResult:
        scores = {name: column[rows] for name, column in self.scores.items()}
        details = tuple(self.details[i] for i in rows.tolist()) if self.details else ()
        return RewardResult(self.total[rows], scores, self.valid[rows], details)

    @staticmethod
    def cat(parts: Sequence[RewardResult]) -> RewardResult:
        """Concatenate the scores of several batches; a score missing from a batch is NaN in its rows."""
        if not parts:
            return RewardResult(torch.zeros(0), {}, torch.zeros(0, dtype=torch.bool))
        names = dict.fromkeys(name for part in parts for name in part.scores)
        unknown = [torch.full_like(part.total, torch.nan) for part in parts]
        columns = {name: [p.scores.get(name, nan) for p, nan in zip(parts, unknown, strict=True)] for name in names}
        known = any(part.details for part in parts)
        details = (detail for part in parts for detail in (part.details or ({},) * len(part))) if known else ()
        total, valid = torch.cat([part.total for part in parts]), torch.cat([part.valid for part in parts])
        return RewardResult(total, {name: torch.cat(c) for name, c in columns.items()}, valid, tuple(details))


@dataclass(frozen=True)
class PartialMeans:
    """Figures of some rows only: for each of k names, the sum over its rows and their count."""

    names: tuple[str, ...]
    table: Float[Tensor, "2 k"]


@dataclass(frozen=True)
class Loss:
    """``total`` is a sum over ``count`` terms: the loop divides once, so micro-batching cannot change it.

    ``velocity`` is the policy's, detached; ``parts`` are logged figures that are not means over all ``count`` terms.
    """

    total: Float[Tensor, ""]
    count: int
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    velocity: Float[Tensor, "b C H W"] | None = None
    parts: PartialMeans | None = None


def _moved(record: Record, device: torch.device | str) -> Record:
    values = {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]
    moved = {name: value.to(device) for name, value in values.items() if hasattr(value, "to")}
    return replace(record, **moved)  # type: ignore[type-var]


def index_rows(record: Record, rows: Int[Tensor, " b"] | slice) -> Record:
    """Index every tensor, tuple and nested record of a record along its first axis; ``None`` stays ``None``."""
    chosen: dict[str, Any] = {}
    for f in fields(record):  # type: ignore[arg-type]
        value = getattr(record, f.name)
        if isinstance(value, tuple) and not isinstance(rows, slice):
            chosen[f.name] = tuple(value[row] for row in rows.tolist())
        else:
            chosen[f.name] = None if value is None else value[rows]
    return replace(record, **chosen)  # type: ignore[type-var]
