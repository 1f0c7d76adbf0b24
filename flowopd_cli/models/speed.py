"""How a transformer is run: compiled, with activation checkpoints, with TF32. None of it changes the mathematics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapters import AdapterBank

COMPILE: dict[str, dict[str, str]] = {
    "default": {},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    "aot_eager": {"backend": "aot_eager"},
    "eager": {"backend": "eager"},
}
VARIANTS = 1024


def allow_tf32(place: torch.device, wanted: bool) -> None:
    """On CUDA, let float32 products of matrices and convolutions round their factors to TF32, or forbid it."""
    if place.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted


def compile_blocks(blocks: Iterable[nn.Module], name: str) -> None:
    """Compile each block in place, so that blocks of one shape share their code; it happens at their first forward.

    Every adapter that is switched to, and whether gradients are wanted, is a variant of its own, compiled once. Graphs
    of CUDA calls are left out: they do not stand a switch.

    Raises:
        ArtifactError: no such way of compiling.
    """
    if name == "none":
        return
    if name not in COMPILE:
        raise ArtifactError(f"model.compile {name!r} is none of none, {', '.join(COMPILE)}")
    config = torch._dynamo.config
    for limit in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(config, limit):
            setattr(config, limit, max(VARIANTS, getattr(config, limit)))
    for block in blocks:
        block.compile(**COMPILE[name])


def checkpointed(bank: AdapterBank) -> Callable[..., Any]:
    """A checkpointing function for diffusers: what a block computed is computed again for its backward.

    That second time happens under the adapter that was active the first time. By itself it would happen under
    whichever is active when the backward comes to it, and the gradients would silently be another adapter's, or none.
    """

    def run(block: nn.Module, *arguments: Any) -> Any:
        name = bank.active

        def again(*values: Any) -> Any:
            if bank.active == name:
                return block(*values)
            with bank.use(name):
                return block(*values)

        return checkpoint(again, *arguments, use_reentrant=False, preserve_rng_state=False)

    return run
