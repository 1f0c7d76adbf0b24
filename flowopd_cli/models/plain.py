"""The same picture by plain diffusers, to check that a published adapter does elsewhere what it does here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json
from flowopd_cli.models.parts import load_part

if TYPE_CHECKING:  # its import takes seconds, and few runs need one
    from diffusers import StableDiffusion3Pipeline


@dataclass(frozen=True)
class Request:
    """One picture to draw, noise included: ``latents (1, C, H, W)``."""

    prompt: str
    latents: Float[Tensor, "1 C H W"]
    steps: int
    guidance: float
    max_sequence_length: int


def plain_pipeline(folder: Path, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    """A diffusers pipeline of an SD3 folder, with or without T5."""
    from diffusers import StableDiffusion3Pipeline

    options = {"torch_dtype": dtype, "use_safetensors": True, **absent_t5(folder)}
    return load_part(StableDiffusion3Pipeline, folder, **options)


def absent_t5(folder: Path) -> dict[str, None]:
    """The arguments without which diffusers refuses an SD3 folder that has no T5; empty for one that has.

    Raises:
        ArtifactError: the folder has no sound ``model_index.json``.
    """
    index = read_json(folder / "model_index.json", "pipeline index")
    kinds = {name: index.get(name) for name in ("text_encoder_3", "tokenizer_3")}
    return {name: None for name, kind in kinds.items() if not isinstance(kind, list) or not kind or kind[0] is None}


def plain_picture(
    pipeline: StableDiffusion3Pipeline, adapter: Path | None, request: Request
) -> Float[Tensor, "1 3 H W"]:
    """What plain diffusers draws with the adapter folder loaded by its own ``load_lora_weights``; in [0, 1].

    Raises:
        ArtifactError: diffusers takes nothing of the adapter.
    """
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter))
        if not pipeline.get_active_adapters():
            raise ArtifactError(f"{adapter}: diffusers loads nothing of this adapter")
    side = request.latents.shape[-1] * pipeline.vae_scale_factor
    drawn = pipeline(
        request.prompt,
        latents=request.latents.to(pipeline.device, pipeline.transformer.dtype),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        max_sequence_length=request.max_sequence_length,
        height=side,
        width=side,
        output_type="pt",
    )
    return drawn.images.float().cpu()
