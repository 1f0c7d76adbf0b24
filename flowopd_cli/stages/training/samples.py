"""Sample pictures over training time: the same few prompts and seeds, drawn by the policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.models.base import FlowModel
from flowopd_cli.recipe import TrainedRecipe
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.drawing import draw_images, ode_sampler, side_by_side, to_bytes
from flowopd_cli.suites.base import image_seed
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import atomic_write

SAMPLES = 8


def make_sample_writer(
    model: FlowModel, recipe: TrainedRecipe, prompts: Mapping[str, Sequence[Prompt]], run: RunDir
) -> Callable[[int], None]:
    """A function that draws the first prompts of each task with fixed seeds into ``samples/``; processes share them."""
    share = max(1, SAMPLES // len(prompts))
    chosen = [prompt for task in prompts for prompt in prompts[task][:share]]
    seeds = [image_seed(recipe.seed, prompt.id, 0) for prompt in chosen]
    sampler = ode_sampler(model, recipe.sampling.steps, recipe.sampling.guidance)
    mine = range(GROUP.rank, len(chosen), GROUP.size)

    def write(iteration: int) -> None:
        if run.writes and not run.sample_prompts_file.is_file():
            entries = [{"text": p.text, "task": p.task, "seed": s} for p, s in zip(chosen, seeds, strict=True)]
            atomic_write(run.sample_prompts_file, json.dumps(entries, indent=1))
        own = [chosen[i] for i in mine], [seeds[i] for i in mine]
        images = to_bytes(draw_images(model, sampler, *own, "policy", recipe.train.rollout_batch))
        by_index = {
            i: image for part in GROUP.gather(dict(zip(mine, images, strict=True))) for i, image in part.items()
        }
        run.write_image(run.sample_file(iteration).stem, side_by_side(by_index[i] for i in range(len(chosen))))

    return write
