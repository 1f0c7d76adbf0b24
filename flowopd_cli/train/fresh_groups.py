"""Fresh groups to replace those with equal rewards, which give no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flowopd_cli.core.types import Conditioning, RewardResult, Rollout, Trajectory
from flowopd_cli.train.collect import Draw, Scores, scores_of_all
from flowopd_cli.train.partition import Partition


def with_fresh_groups(
    rolled: Rollout,
    scores: Scores,
    grade: Callable[[Draw], Rollout],
    fresh: Callable[[Sequence[int], Sequence[int]], Draw],
    *,
    most: int,
    partition: Partition | None = None,
) -> tuple[Rollout, int]:
    """Replace groups of equal rewards by fresh ones with unequal rewards; draws at most ``most``. Returns how many.

    ``fresh(tried, chosen)`` draws groups in place of ``chosen``, which keep their numbers, after others were drawn in
    place of ``tried``: of several processes each draws for its own. All of them agree on what is drawn, for they see
    the same ``scores``.
    """
    tried: list[int] = []
    flat, replaced = scores.flat, 0
    while flat and len(tried) < most:
        chosen = flat[: most - len(tried)]
        graded = grade(fresh(tried, chosen))
        flat_again = set(scores_of_all(graded, weights=scores.weights).flat)
        local = [group for group in graded.group.unique().tolist() if group not in flat_again]
        lively = {group for part in ([local] if partition is None else partition.gather(local)) for group in part}
        rolled = _exchanged(rolled, graded, local)
        tried, flat, replaced = [*tried, *chosen], [g for g in flat if g not in lively], replaced + len(lively)
    return rolled, replaced


def _exchanged(rolled: Rollout, graded: Rollout, groups: Sequence[int]) -> Rollout:
    """``rolled`` with the rows of ``groups`` taken from ``graded``, in place."""
    if not groups:
        return rolled
    rows = torch.arange(len(rolled.prompts))
    for group in groups:
        rows[rolled.group == group] = len(rows) + (graded.group == group).nonzero()[:, 0]
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
    return both[rows]
