"""Optimizers of the loop, by the name that a recipe gives them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flowopd_cli.errors import MissingDependency


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``adamw`` is PyTorch's; ``adamw8bit`` that of bitsandbytes, the moments of large parameters in 8 bits.

    Raises:
        MissingDependency: bitsandbytes is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    if name != "adamw8bit":
        raise ValueError(f"no optimizer {name!r}")
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency("bitsandbytes", extra="int8") from error
    return AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)
