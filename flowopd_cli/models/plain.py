"""The same picture by plain diffusers, to check that a published adapter does elsewhere what it does here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.folders import absent_parts
from flowopd_cli.models.parts import load_part


@dataclass(frozen=True)
class Request:
    """One picture of ``side`` pixels to draw, and its noise as the pipeline itself lays latents out."""

    prompt: str
    latents: Float[Tensor, "1 ..."]
    side: int
    steps: int
    guidance: float
    max_sequence_length: int


def plain_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a folder, whichever its family."""
    from diffusers import DiffusionPipeline  # its import takes seconds, and few runs need one

    options = {"torch_dtype": dtype, "use_safetensors": True, **absent_parts(folder)}
    return load_part(DiffusionPipeline, folder, **options)


def plain_picture(pipeline: Any, adapter: Path | None, request: Request) -> Float[Tensor, "1 3 H W"]:
    """What plain diffusers draws with the adapter folder loaded by its own ``load_lora_weights``; in [0, 1].

    Raises:
        ArtifactError: diffusers takes nothing of the adapter.
    """
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter))
        if not pipeline.get_active_adapters():
            raise ArtifactError(f"{adapter}: diffusers loads nothing of this adapter")
    drawn = pipeline(
        request.prompt,
        latents=request.latents.to(pipeline.device, pipeline.transformer.dtype),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        max_sequence_length=request.max_sequence_length,
        height=request.side,
        width=request.side,
        output_type="pt",
    )
    return drawn.images.float().cpu()
