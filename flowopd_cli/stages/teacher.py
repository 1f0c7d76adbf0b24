"""``flowopd teacher``: single-reward (or weighted) GRPO of one adapter."""

from __future__ import annotations

from functools import partial
from typing import Any

from flowopd_cli.recipe import TeacherRecipe
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training import (
    data as _data,
)
from flowopd_cli.stages.training import (
    fit as _fit,
)
from flowopd_cli.stages.training import (
    lessons as _lessons,
)
from flowopd_cli.stages.training import (
    model as _model,
)
from flowopd_cli.stages.training import (
    scoring as _background,
)
from flowopd_cli.stages.training.resume import prompts_digest
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import collect, objectives
from flowopd_cli.train import grading as graded


def run(
    recipe: TeacherRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Rollout, rewards, advantages, clipped surrogate; the adapter ends in ``adapter/``."""
    train, grpo = recipe.train, recipe.grpo
    drawer, prompts = _data.make_drawer(recipe.prompts, train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = _data.make_rewards(recipe.rewards, prompts)
    model = _model.load_model(recipe.model, recipe.adapter.targets)
    roles = _model.Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    run.declare(roles.inputs(recipe.model, prompts_digest(prompts)))
    _model.encode_ahead(model, prompts)
    base = collect.Teacher(None, recipe.sampling.guidance) if grpo.beta else None
    grader = graded.Grader(model, partial(_background.InBackground, rewards), train.rollout_batch, base)

    def experience(iteration: int):
        sampler = _lessons.iteration_sampler(model, recipe, iteration)
        draw = drawer(iteration)
        rolled = grader(sampler, draw)
        scores = collect.scores_of_all(rolled, draw.share)
        figures = collect.figures(scores)
        if train.resample_flat:
            again = partial(grader, sampler), partial(drawer.fresh, iteration)
            rolled, replaced = graded.with_fresh_groups(
                rolled, scores, *again, most=train.resample_flat, share=draw.share
            )
            scores = collect.scores_of_all(rolled, draw.share) if replaced else scores
            figures["resampled_groups"] = float(replaced)
        advantages = {"std": grpo.std, "clip": grpo.adv_clip, "share": draw.share, "scores": scores}
        rolled = collect.with_advantages(rolled, **advantages)
        if not scores.result.valid.any():
            return [], figures
        deal = {"updates": train.updates, "micro": train.micro, "seed": recipe.seed + iteration, "share": draw.share}
        return collect.step_batches(rolled, sampler, **deal), figures

    sampler = _fit.make_sampler(model, recipe.sampling)
    objective = objectives.grpo(model, sampler, clip=grpo.clip, beta=grpo.beta)
    course = _fit.Course(f"teacher {'+'.join(r.name for r in recipe.rewards)}", experience, objective, prompts)
    return {"metrics": _fit.train(recipe, model, run, progress, course, resume=resume)}
