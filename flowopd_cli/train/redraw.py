"""Pictures and groups drawn again: those without a score, and those with equal rewards, which give no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli.core.types import Conditioning, RewardResult, Rollout, Trajectory
from flowopd_cli.train.collect import Draw, Scores, scores_of_all
from flowopd_cli.train.partition import Partition


@dataclass
class Redraw:
    """Redraws of one iteration, which replace rows of its rollout; ``grade`` draws and scores.

    Of several processes each draws for its own rows. All of them agree on what is drawn, for they see the same scores.
    ``pictures`` counts those drawn by :meth:`refilled`.
    """

    grade: Callable[[Draw], Rollout]
    partition: Partition | None = None
    pictures: int = 0

    def refilled(
        self, rolled: Rollout, scores: Scores, seeds: Callable[[Sequence[int]], Sequence[int]], *, most: int
    ) -> tuple[Rollout, Scores]:
        """Replace pictures with invalid scores by others of the same prompts; draws at most ``most`` in all calls.

        ``seeds`` returns the noise seed of the n-th picture for each n.
        """
        while (room := most - self.pictures) > 0 and not scores.result.valid.all():
            invalid = (~scores.result.valid).nonzero()[:room, 0]
            own = torch.arange(len(scores.group)) if self.partition is None else self.partition.rows
            numbers = self.pictures + torch.isin(invalid, own).nonzero()[:, 0]
            places = invalid if self.partition is None else self.partition.local_rows(invalid)
            prompts = tuple(rolled.prompts[place] for place in places.tolist())
            graded = self.grade(Draw(prompts, rolled.group[places], tuple(seeds(numbers.tolist()))))
            rows = scores_of_all(graded).result.valid.nonzero()[:, 0]
            rolled = _exchanged(rolled, places[rows], graded, rows)
            scores = scores_of_all(rolled, self.partition, scores.weights)
            self.pictures += len(invalid)
        return rolled, scores

    def with_fresh_groups(
        self, rolled: Rollout, scores: Scores, fresh: Callable[[Sequence[int], Sequence[int]], Draw], *, most: int
    ) -> tuple[Rollout, int]:
        """Replace groups of equal rewards by fresh ones with unequal rewards; draws at most ``most``. Returns how many.

        ``fresh(tried, chosen)`` draws groups in place of ``chosen``, which keep their numbers, after others were drawn
        in place of ``tried``.
        """
        tried: list[int] = []
        flat, replaced = scores.flat, 0
        while flat and len(tried) < most:
            chosen = flat[: most - len(tried)]
            graded = self.grade(fresh(tried, chosen))
            flat_again = set(scores_of_all(graded, weights=scores.weights).flat)
            local = [group for group in graded.group.unique().tolist() if group not in flat_again]
            parts = [local] if self.partition is None else self.partition.gather(local)
            lively = {group for part in parts for group in part}
            rolled = _exchanged(rolled, _rows(rolled, local), graded, _rows(graded, local))
            tried, flat, replaced = [*tried, *chosen], [g for g in flat if g not in lively], replaced + len(lively)
        return rolled, replaced


def _rows(rolled: Rollout, groups: Sequence[int]) -> Int[Tensor, " n"]:
    """The rows of these groups, group by group."""
    return torch.cat([torch.zeros(0, dtype=torch.long), *((rolled.group == g).nonzero()[:, 0] for g in groups)])


def _exchanged(rolled: Rollout, places: Int[Tensor, " n"], graded: Rollout, rows: Int[Tensor, " n"]) -> Rollout:
    """``rolled`` with the ``rows`` of ``graded`` in its ``places``."""
    if not len(places):
        return rolled
    index = torch.arange(len(rolled.prompts))
    index[places] = len(index) + rows
    pair = (rolled, graded)
    velocities = [r.anchor_velocity for r in pair if r.anchor_velocity is not None]
    both = Rollout(
        rolled.prompts + graded.prompts,
        torch.cat([r.group for r in pair]),
        Conditioning.cat([r.cond for r in pair]),
        Trajectory.cat([r.trajectory for r in pair]),
        rewards=RewardResult.cat([r.rewards for r in pair if r.rewards is not None]),
        anchor_velocity=torch.cat(velocities) if velocities else None,
    )
    return both[index]
