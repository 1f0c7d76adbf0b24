"""Pictures by plain diffusers and by PEFT, to check that a published adapter gives the same picture there."""

from __future__ import annotations

from collections.abc import Mapping
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
    """One picture of ``side`` pixels to draw; ``latents`` is its noise in the pipeline's layout.

    ``options`` are further arguments of the pipeline's call, guidance among them.
    """

    prompt: str
    latents: Float[Tensor, "1 ..."]
    side: int
    steps: int
    max_sequence_length: int
    options: Mapping[str, Any]


def plain_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a folder, of any family."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # its import takes seconds, and few runs need one

    return load_part(DiffusionPipeline, folder, dtype=dtype, **absent_parts(folder))


def plain_picture(pipeline: Any, adapter: Path | None, request: Request) -> Float[Tensor, "1 3 H W"]:
    """The picture by plain diffusers, in [0, 1], with the adapter loaded by ``load_lora_weights``, then unloaded."""
    if adapter is None:
        return _draw(pipeline, request)
    pipeline.load_lora_weights(str(adapter))
    if not pipeline.get_active_adapters():
        raise ArtifactError(f"{adapter}: diffusers loads nothing of this adapter")
    try:
        return _draw(pipeline, request)
    finally:
        pipeline.unload_lora_weights()


def peft_picture(pipeline: Any, adapter: Path, request: Request) -> Float[Tensor, "1 3 H W"]:
    """The picture, in [0, 1], with the adapter loaded by PEFT's ``from_pretrained`` and unloaded after."""
    from peft import PeftModel

    bare = pipeline.transformer
    try:
        wrapped = PeftModel.from_pretrained(bare, str(adapter))
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ArtifactError(f"{adapter}: PEFT does not load this adapter ({one_line(error)[:200]})") from error
    pipeline.transformer = wrapped
    try:
        return _draw(pipeline, request)
    finally:
        pipeline.transformer = wrapped.unload()


def full_picture(pipeline: Any, folder: Path, request: Request) -> Float[Tensor, "1 3 H W"]:
    """The picture, in [0, 1], with the transformer of a folder in place of the pipeline's own."""
    bare = pipeline.transformer
    pipeline.transformer = load_part(type(bare), folder, dtype=bare.dtype).to(bare.device)
    try:
        return _draw(pipeline, request)
    finally:
        pipeline.transformer = bare


def _draw(pipeline: Any, request: Request) -> Float[Tensor, "1 3 H W"]:
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        prompt=request.prompt,
        latents=request.latents.to(pipeline.device, pipeline.transformer.dtype),
        num_inference_steps=request.steps,
        max_sequence_length=request.max_sequence_length,
        height=request.side,
        width=request.side,
        output_type="pt",
        **request.options,
    )
    return output.images.float().cpu()
