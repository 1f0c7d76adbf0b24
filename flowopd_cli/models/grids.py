"""The grid of sigmas of a pipeline that gives its flow-matching scheduler even steps, by the scheduler's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.schedule import shift_sigmas, stretch_sigmas
from flowopd_cli.errors import ArtifactError

OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")


def even_grid(steps: int, shift: float, terminal: float | None = None) -> Float[Tensor, " T1"]:
    """Even steps from 1, shifted and followed by 0; the last before 0 is ``terminal``, if it is not ``None``."""
    shifted = shift_sigmas(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), shift)
    if terminal and steps > 1:
        shifted = stretch_sigmas(shifted, terminal)
    return torch.cat([shifted, torch.zeros(1, dtype=torch.float64)])


def check_grid(config: Mapping[str, Any], source: object) -> None:
    """Refuse a scheduler's settings that make another grid than a shifted one; ``source`` is named in the message.

    Raises :class:`ArtifactError`: they do.
    """
    unsupported = [name for name in OTHER_GRIDS if config.get(name)]
    if unsupported:
        raise ArtifactError(
            f"{source}: the scheduler's {unsupported[0]} is not supported: use a copy of the base whose "
            "scheduler_config.json has it false"
        )


def shift_of(config: Mapping[str, Any], tokens: int) -> float:
    """A scheduler's shift: a constant, or one whose logarithm is linear in the number of a picture's tokens."""
    if not config["use_dynamic_shifting"]:
        return config["shift"]
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    return dynamic_shift(config, config["base_shift"] + slope * (tokens - config["base_image_seq_len"]))


def dynamic_shift(config: Mapping[str, Any], mu: float) -> float:
    """The shift for a scheduler's ``mu``."""
    return mu if config["time_shift_type"] == "linear" else math.exp(mu)
