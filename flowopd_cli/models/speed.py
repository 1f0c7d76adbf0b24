"""Speed and memory of a transformer: compilation, activation checkpoints, TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.full_weights import WeightBank

COMPILE: dict[str, dict[str, str]] = {
    "default": {},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    "aot_eager": {"backend": "aot_eager"},
    "eager": {"backend": "eager"},
}
VARIANTS = 1024


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """On CUDA, allow or forbid TF32 in float32 matrix products and convolutions."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def compile_blocks(blocks: Iterable[nn.Module], name: str) -> None:
    """Compile each block in place at its first forward; blocks of one shape share their code.

    Each adapter, with and without gradients, is compiled once. CUDA graphs do not allow a switch and are left out.

    Raises :class:`ArtifactError`: ``name`` is unknown.
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


def checkpointed(bank: WeightBank) -> Callable[..., Any]:
    """A checkpointing function for diffusers that recomputes a block with the adapter or weights of its forward.

    With those that are active in the backward, gradients would silently be lost or belong to another adapter.
    """

    def run(block: nn.Module, *arguments: Any) -> Any:
        name, weights = bank.active, bank.installed

        def again(*values: Any) -> Any:
            with bank.use(name), bank.install(weights):
                return block(*values)

        return checkpoint(again, *arguments, use_reentrant=False, preserve_rng_state=False)

    return run
