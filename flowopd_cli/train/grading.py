"""Rollouts with rewards: scored while more are drawn, and fresh groups in place of those that teach nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.advantages import flat_groups
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.types import Conditioning, RewardResult, Rollout
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train import collect
from flowopd_cli.train.collect import Draw, Scores, Teacher
from flowopd_cli.train.partition import Partition


class Scoring(Protocol):
    """Scores one rollout's pictures, batch by batch in the order in which they come; perhaps in the background."""

    def submit(self, images: Float[Tensor, "b 3 H W"], prompts: Sequence[Prompt]) -> None:
        """Take a batch; an error of an earlier one may be raised here."""
        ...

    def result(self) -> RewardResult:
        """The scores of all pictures that were submitted, when they are known."""
        ...


@dataclass(frozen=True)
class Grader:
    """Draws rollouts of ``policy`` and their rewards, and the velocities of a ``reference`` where there is one.

    A batch is handed over as soon as it is drawn, so that it can be scored while the next one is and while the
    reference answers; ``scoring`` begins one rollout's scores. Rewards score each picture by itself, so that batches
    change nothing; pictures are not kept.
    """

    model: FlowModel
    scoring: Callable[[], Scoring]
    batch: int = 32
    reference: Teacher | None = None

    @torch.no_grad()
    def __call__(self, sampler: Sampler, draw: Draw) -> Rollout:
        """The rollout of a draw with rewards ``(B,)``, and ``anchor_velocity`` where there is a reference."""
        scoring, parts = self.scoring(), []
        cond = collect.encoded(self.model, draw.prompts)
        with self.model.adapters.use("policy"):
            for rows, part in collect.trajectories(self.model, sampler, draw, cond, batch=self.batch):
                parts.append(part)
                if len(part.latents):
                    scoring.submit(self.model.decode(part.final), draw.prompts[rows])
        rolled = Rollout(draw.prompts, draw.group, cond, collect.join(parts))
        if self.reference is not None:
            rolled = collect.with_anchor(self.model, sampler, rolled, self.reference, batch=self.batch)
        return replace(rolled, rewards=scoring.result())


def with_fresh_groups(
    rolled: Rollout,
    scores: Scores,
    grade: Callable[[Draw], Rollout],
    fresh: Callable[[Sequence[int], Sequence[int]], Draw],
    *,
    most: int,
    partition: Partition | None = None,
) -> tuple[Rollout, int]:
    """Replace groups without spread by fresh ones that have some; ``most`` are drawn. Returns how many were replaced.

    ``fresh(tried, chosen)`` draws groups in place of ``chosen``, which keep their numbers, after others were drawn in
    place of ``tried``: of several processes each draws for its own. All of them agree on what is drawn, for they see
    the same ``scores``.
    """
    tried: list[int] = []
    flat, replaced = scores.flat, 0
    while flat and len(tried) < most:
        chosen = flat[: most - len(tried)]
        drawn = grade(fresh(tried, chosen))
        own = _lively(drawn)
        lively = {group for part in ([own] if partition is None else partition.gather(own)) for group in part}
        rolled = _exchanged(rolled, drawn, own)
        tried, flat, replaced = [*tried, *chosen], [g for g in flat if g not in lively], replaced + len(lively)
    return rolled, replaced


def _lively(rolled: Rollout) -> list[int]:
    """The groups that have some spread."""
    if rolled.rewards is None:
        raise ValueError("fresh groups need rewards")
    flat = set(flat_groups(rolled.rewards.total, rolled.group, rolled.rewards.valid))
    return [group for group in rolled.group.unique().tolist() if group not in flat]


def _exchanged(rolled: Rollout, drawn: Rollout, groups: Sequence[int]) -> Rollout:
    """``rolled`` with the rows of ``groups`` taken from ``drawn``, in place."""
    if not groups:
        return rolled
    rows = torch.arange(len(rolled.prompts))
    for group in groups:
        rows[rolled.group == group] = len(rows) + (drawn.group == group).nonzero()[:, 0]
    return _rows(_both(rolled, drawn), rows)


def _both(one: Rollout, two: Rollout) -> Rollout:
    rewards, velocity = (one.rewards, two.rewards), (one.anchor_velocity, two.anchor_velocity)
    return Rollout(
        (*one.prompts, *two.prompts),
        torch.cat([one.group, two.group]),
        Conditioning.cat([one.cond, two.cond]),
        collect.join([one.trajectory, two.trajectory]),
        rewards=RewardResult.cat([part for part in rewards if part is not None]),
        anchor_velocity=torch.cat([v for v in velocity if v is not None]) if velocity[0] is not None else None,
    )


def _rows(rolled: Rollout, rows: Int[Tensor, " n"]) -> Rollout:
    states = rolled.trajectory
    log_probs = None if states.log_probs is None else states.log_probs[rows]
    return replace(
        rolled,
        prompts=tuple(rolled.prompts[i] for i in rows.tolist()),
        group=rolled.group[rows],
        cond=rolled.cond[rows],
        trajectory=replace(states, latents=states.latents[rows], log_probs=log_probs),
        rewards=None if rolled.rewards is None else rolled.rewards[rows],
        anchor_velocity=None if rolled.anchor_velocity is None else rolled.anchor_velocity[rows],
    )
