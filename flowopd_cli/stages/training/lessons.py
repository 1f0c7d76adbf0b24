"""The sampler of one iteration: its window and the steps that teach are a function of seed and iteration alone."""

from __future__ import annotations

from dataclasses import replace

from flowopd_cli.core.sampler import Sampler, draw_lessons
from flowopd_cli.models.base import FlowModel
from flowopd_cli.recipe import AnchorSpec, DistillRecipe, TeacherRecipe
from flowopd_cli.stages.training.fit import make_sampler
from flowopd_cli.train.collect import trained_steps


def iteration_sampler(model: FlowModel, recipe: TeacherRecipe | DistillRecipe, iteration: int) -> Sampler:
    """The recipe's sampler in one iteration, the same on every process and after a resume."""
    seed = recipe.seed + iteration
    sampler = make_sampler(model, recipe.sampling, seed=seed)
    anchor = recipe.anchor if isinstance(recipe, DistillRecipe) else AnchorSpec()
    chosen = draw_lessons(
        trained_steps(sampler),
        seed,
        steps=recipe.train.steps_per_rollout,
        every=anchor.every,
        probability=anchor.probability,
    )
    return replace(sampler, lessons=chosen)
