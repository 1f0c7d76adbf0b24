"""Group-relative credit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_advantages(
    rewards: Float[Tensor, " B"],
    group: Int[Tensor, " B"],
    valid: Bool[Tensor, " B"] | None = None,
    *,
    task: Int[Tensor, " B"] | None = None,
    std: Literal["group", "global"] = "global",
    eps: float = 1e-4,
) -> Float[Tensor, " B"]:
    """``A = (r - mean_group) / (std + eps)``, the population std of the group or of all (Flow-GRPO, eq. 4).

    With ``task``, "all" are the rows of the same task, whose rewards have a scale of their own. Invalid rows are left
    out of every statistic and get 0, as do flat groups. Computed in float64.
    """
    keep = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    reward = torch.where(keep, rewards, 0.0).double()
    groups, index = torch.unique(group, return_inverse=True)
    mean, deviation = _statistics(reward, keep, index, len(groups))
    spread = deviation[index]
    if std == "global":
        tasks, index_of_task = torch.unique(torch.zeros_like(index) if task is None else task, return_inverse=True)
        spread = _statistics(reward, keep, index_of_task, len(tasks))[1][index_of_task]
    unequal = keep & ~_flat(reward, keep, index, len(groups))[index]
    return torch.where(unequal, (reward - mean[index]) / (spread + eps), 0.0).to(rewards.dtype)


def summed_advantages(
    scores: Sequence[Float[Tensor, " B"]],
    weights: Sequence[float],
    group: Int[Tensor, " B"],
    *,
    task: Int[Tensor, " B"] | None = None,
    std: Literal["group", "global"] = "global",
    eps: float = 1e-4,
) -> Float[Tensor, " B"]:
    """``A = sum_k w_k (r_k - mean_k) / (std_k + eps)``: each of K rewards normalized alone (GDPO, arXiv 2601.05242).

    A score that is not finite is left out of its reward's statistics and of its row's sum.
    """
    parts = [
        weight * group_advantages(column, group, column.isfinite(), task=task, std=std, eps=eps)
        for weight, column in zip(weights, scores, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def flat_groups(
    rewards: Float[Tensor, " B"], group: Int[Tensor, " B"], valid: Bool[Tensor, " B"] | None = None
) -> list[int]:
    """The groups whose valid rewards are all equal, in order: their advantages are 0."""
    keep = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    groups, index = torch.unique(group, return_inverse=True)
    return groups[_flat(rewards, keep, index, len(groups))].tolist()


def _flat(
    reward: Float[Tensor, " B"], keep: Bool[Tensor, " B"], index: Int[Tensor, " B"], count: int
) -> Bool[Tensor, " G"]:
    """Whether a group's valid rewards are all equal, by comparison: a sum of equal numbers is rounded."""
    low = reward.new_full((count,), float("inf")).scatter_reduce_(0, index[keep], reward[keep], "amin")
    high = reward.new_full((count,), -float("inf")).scatter_reduce_(0, index[keep], reward[keep], "amax")
    return high <= low


def _statistics(
    reward: Float[Tensor, " B"], keep: Bool[Tensor, " B"], index: Int[Tensor, " B"], count: int
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Mean and population std of each group's valid rewards."""
    weight = keep.to(reward.dtype)
    size = reward.new_zeros(count).index_add_(0, index, weight).clamp(min=1)
    mean = reward.new_zeros(count).index_add_(0, index, reward * weight) / size
    spread = (reward - mean[index]).square() * weight
    return mean, (reward.new_zeros(count).index_add_(0, index, spread) / size).sqrt()
