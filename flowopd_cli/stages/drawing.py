"""Pictures of a model: one for each prompt and seed, with the deterministic sampler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, SeededNoise
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.models.base import FlowModel


def ode_sampler(model: FlowModel, steps: int, guidance: float) -> Sampler:
    """The deterministic sampler of evaluations and sample pictures."""
    sigmas = model.sigmas(steps)
    return Sampler(sigmas, make_kernel("ode", 0.0, sigmas), guidance)


@torch.no_grad()
def draw_images(
    model: FlowModel, sampler: Sampler, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str | None, batch: int
) -> Float[Tensor, "B 3 H W"]:
    """One picture a prompt and seed, in [0, 1] on the CPU; ``batch`` rows at a time under ``adapter``."""
    images = []
    with model.adapters.use(adapter):
        for start in range(0, len(prompts), batch):
            cond = model.encode([prompt.text for prompt in prompts[start : start + batch]])
            noise = SeededNoise(tuple(seeds[start : start + batch]), model.latent_shape)
            initial = noise.initial().to(cond.embeds.device)
            latents = sampler.rollout(model.velocity, initial, cond, noise, keep="last").final
            images.append(model.decode(latents).float().cpu())
    return torch.cat(images) if images else torch.zeros(0, 3, 1, 1)


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures in [0, 1] as the bytes of a PNG."""
    return (images.clamp(0, 1) * 255).round().byte().cpu()


def side_by_side(images: Iterable[UInt8[Tensor, "3 H W"]]) -> Image.Image:
    """Pictures of one size in a row, as a PIL image."""
    return Image.fromarray(torch.cat(tuple(images), dim=2).permute(1, 2, 0).numpy())
