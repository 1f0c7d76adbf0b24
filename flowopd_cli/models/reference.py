"""The same picture by plain diffusers, to check that a published adapter does elsewhere what it does here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.pipelines import absent_parts
from flowopd_cli.models.loading import load_part


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
    """What plain diffusers draws with the adapter folder loaded by its own ``load_lora_weights``; in [0, 1]. The
    pipeline is left without it.

    Raises:
        ArtifactError: diffusers takes nothing of the adapter.
    """
    if adapter is None:
        return _drawn(pipeline, request)
    pipeline.load_lora_weights(str(adapter))
    if not pipeline.get_active_adapters():
        raise ArtifactError(f"{adapter}: diffusers loads nothing of this adapter")
    try:
        return _drawn(pipeline, request)
    finally:
        pipeline.unload_lora_weights()


def peft_picture(pipeline: Any, adapter: Path, request: Request) -> Float[Tensor, "1 3 H W"]:
    """What the pipeline draws with the adapter folder loaded by PEFT's own ``from_pretrained``; in [0, 1]. The pipeline
    is left without it.

    Raises:
        ArtifactError: PEFT does not take the adapter.
    """
    from peft import PeftModel

    bare = pipeline.transformer
    try:
        wrapped = PeftModel.from_pretrained(bare, str(adapter))
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ArtifactError(f"{adapter}: PEFT does not load this adapter ({one_line(error)[:200]})") from error
    pipeline.transformer = wrapped
    try:
        return _drawn(pipeline, request)
    finally:
        pipeline.transformer = wrapped.unload()


def _drawn(pipeline: Any, request: Request) -> Float[Tensor, "1 3 H W"]:
    pipeline.set_progress_bar_config(disable=True)
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
