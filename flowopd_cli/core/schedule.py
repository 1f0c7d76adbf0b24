"""Sigma grids and the time shift of SD3."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def shift_sigmas(sigmas: Float[Tensor, " T"], shift: float) -> Float[Tensor, " T"]:
    """``s sigma / (1 + (s - 1) sigma)``: more steps where there is more noise (SD3, arXiv 2403.03206, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flow_sigmas(steps: int, shift: float, *, num_train_timesteps: int = 1000) -> Float[Tensor, " T1"]:
    """The grid of ``steps + 1`` sigmas from 1 to 0, float64, that diffusers' Euler scheduler uses for SD3.5.

    The scheduler spaces its times between the largest and the smallest *shifted* training sigma and shifts them
    again, which is why the smallest sigma before 0 is shifted twice.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a grid needs steps >= 1 and shift > 0, got {steps} and {shift}")
    ends = shift_sigmas(torch.tensor([1.0, 1.0 / num_train_timesteps], dtype=torch.float64), shift)
    spaced = torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64)
    return torch.cat([shift_sigmas(spaced, shift), torch.zeros(1, dtype=torch.float64)])


def stretch_sigmas(sigmas: Float[Tensor, " T"], terminal: float) -> Float[Tensor, " T"]:
    """Scale ``1 - sigma``, so that the last sigma is ``terminal``; the last one must not be 1."""
    distance = 1 - sigmas
    return 1 - distance * (1 - terminal) / distance[-1]
