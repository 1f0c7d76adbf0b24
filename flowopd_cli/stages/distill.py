"""``flowopd distill``: multi-teacher on-policy distillation with manifold anchor regularization."""

from __future__ import annotations

from typing import Any

from flowopd_cli.progress import Progress
from flowopd_cli.recipe import DistillRecipe
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _data, _fit, _model
from flowopd_cli.tasks import check_tasks
from flowopd_cli.train import collect, objectives


def run(recipe: DistillRecipe, run: RunDir, progress: Progress, *, resume: bool = False) -> dict[str, Any]:
    """Rollout, route, target velocities, anchor velocities, ``opd``; no decoding unless rewards are logged."""
    train, opd, guidance = recipe.train, recipe.opd, recipe.sampling.guidance
    drawer, prompts = _data.make_drawer(recipe.prompts, train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = _data.make_rewards(recipe.rewards, prompts) if opd.log_rewards_every else None
    model = _model.load_model(recipe.model, recipe.adapter.targets, run)
    parents = _model.add_policy(model, recipe.adapter, recipe.seed)
    teachers = _model.add_teachers(model, recipe.routing, guidance, parents)
    anchor = _model.add_anchor(model, recipe.anchor, guidance, parents)
    run.set_parents(parents)
    _model.encode_ahead(model, prompts)
    final: dict[str, float] = {}

    def experience(iteration: int):
        sampler = _fit.make_sampler(model, recipe.sampling, seed=recipe.seed + iteration)
        draw = drawer(iteration)
        rolled = collect.rollout(model, sampler, draw, batch=train.rollout_batch)
        figures: dict[str, float] = {}
        if rewards is not None and iteration % opd.log_rewards_every == 0:
            pictures = collect.with_images(model, rolled, batch=train.rollout_batch)
            figures = collect.reward_figures(collect.with_rewards(pictures, rewards), draw.share)
        rolled = collect.with_targets(model, sampler, rolled, teachers, batch=train.rollout_batch)
        if anchor is not None:
            rolled = collect.with_anchor(model, sampler, rolled, anchor, batch=train.rollout_batch)
        final.update(figures)
        deal = {"updates": train.updates, "micro": train.micro, "seed": recipe.seed + iteration, "share": draw.share}
        return collect.step_batches(rolled, sampler, **deal), figures

    sampler = _fit.make_sampler(model, recipe.sampling)
    objective = objectives.opd(model, sampler, _fit.opd_settings(recipe))
    course = _fit.Course(f"distill {len(teachers)} teachers", experience, objective, prompts)
    _fit.train(recipe, model, run, progress, course, resume=resume)
    return {"metrics": final}
