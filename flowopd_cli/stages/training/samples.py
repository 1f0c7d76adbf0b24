"""Sample pictures over training time: the same few prompts and seeds, drawn by the policy as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.models.base import FlowModel
from flowopd_cli.recipe import TeacherRecipe
from flowopd_cli.runs.run import RunDir
from flowopd_cli.suites.base import image_seed
from flowopd_cli.system.distributed import everyone, rank_and_world
from flowopd_cli.system.files import atomic_write
from flowopd_cli.train import collect

SAMPLES = 8


def ode_sampler(model: FlowModel, steps: int, guidance: float) -> Sampler:
    """The deterministic sampler of evaluation and sample pictures."""
    sigmas = model.sigmas(steps)
    return Sampler(sigmas, make_kernel("ode", 0.0, sigmas), guidance)


def draw_images(
    model: FlowModel, sampler: Sampler, prompts: Sequence[Prompt], seeds: Sequence[int], adapter: str | None, batch: int
) -> Float[Tensor, "B 3 H W"]:
    """One picture a prompt and seed, on the CPU."""
    draw = collect.Draw(tuple(prompts), torch.arange(len(prompts)), tuple(seeds))
    rolled = collect.rollout(model, sampler, draw, adapter=adapter, batch=batch, last=True)
    images = collect.with_images(model, rolled, batch=batch).images
    assert images is not None
    return images.float().cpu()


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures in [0, 1] as bytes: what a PNG of them would hold."""
    return (images.clamp(0, 1) * 255).round().byte().cpu()


def grid(images: UInt8[Tensor, "B 3 H W"], columns: int) -> Image.Image:
    """Pictures side by side, as a PIL image."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)


def make_sample_writer(
    model: FlowModel, recipe: TeacherRecipe, prompts: Mapping[str, Sequence[Prompt]], run: RunDir
) -> Callable[[int], None]:
    """A function that draws the first prompts of each task with fixed seeds into ``samples/``; processes share them."""
    share = max(1, SAMPLES // len(prompts))
    chosen = [prompt for task in prompts for prompt in prompts[task][:share]]
    seeds = [image_seed(recipe.seed, prompt.id, 0) for prompt in chosen]
    sampler = ode_sampler(model, recipe.sampling.steps, recipe.sampling.guidance)

    rank, processes = rank_and_world()
    mine = range(rank, len(chosen), processes)

    def write(iteration: int) -> None:
        if run.writes and not run.sample_prompts_file.is_file():
            told = [{"text": p.text, "task": p.task, "seed": s} for p, s in zip(chosen, seeds, strict=True)]
            atomic_write(run.sample_prompts_file, json.dumps(told, indent=1))
        own = [chosen[i] for i in mine], [seeds[i] for i in mine]
        images = to_bytes(draw_images(model, sampler, *own, "policy", recipe.train.rollout_batch))
        drawn = {i: image for part in everyone(dict(zip(mine, images, strict=True))) for i, image in part.items()}
        pictures = torch.stack([drawn[i] for i in range(len(chosen))])
        run.write_image(run.sample_file(iteration).stem, grid(pictures, len(chosen)))

    return write
