"""``flowopd distill``: multi-teacher on-policy distillation with manifold anchor regularization."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from flowopd_cli.core.types import Rollout
from flowopd_cli.recipe import DistillRecipe
from flowopd_cli.recipe.tasks import check_tasks, check_weights
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.data import iteration_sampler, make_drawer, make_rewards
from flowopd_cli.stages.training.fit import Course, train_policy
from flowopd_cli.stages.training.model import Roles, load_model, make_routes
from flowopd_cli.stages.training.prepare import prepare
from flowopd_cli.stages.training.watch import make_watch
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import collect, labels
from flowopd_cli.train.fused import FusedStep, micro_batches


def run(
    recipe: DistillRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Rollout, target velocities by route, anchor velocities, ``opd``; no decoding unless rewards are logged."""
    train, guidance = recipe.train, recipe.sampling.guidance
    drawer, prompts = make_drawer(recipe.prompts, train, recipe.seed, alternating=recipe.opd.teachers == "alternating")
    check_tasks(recipe, prompts)
    rewards = make_rewards(recipe.rewards, prompts) if recipe.opd.log_rewards_every else None
    watch = make_watch(recipe, rewards)
    check_weights(recipe, [*chain.from_iterable(prompts.values()), *(watch.draw.prompts if watch else ())])
    model = load_model(recipe.model, recipe.adapter.targets)
    roles = Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    teachers = roles.add_teachers(recipe.teachers, guidance, recipe.model)
    routes = make_routes(recipe, teachers)
    anchor = roles.add_anchor(recipe.anchor, guidance)
    if watch is not None:
        routed = [(prompt, routes.get(prompt.task)) for prompt in watch.draw.prompts]
        watch.targets = [None if route is None else route.target(prompt) for prompt, route in routed]
    prepare(recipe, run, roles, prompts, watch, progress)
    batch, every, fuse = train.rollout_batch, recipe.opd.log_rewards_every, recipe.fused

    def experience(iteration: int):
        sampler, draw = iteration_sampler(model, recipe, iteration), drawer(iteration)
        figures: dict[str, float] = {}

        @torch.no_grad()
        def log_rewards(rolled: Rollout) -> None:
            if rewards is not None:
                scored = collect.with_rewards(collect.with_images(model, rolled, batch=batch), rewards)
                figures.update(collect.reward_figures(collect.scores_of_all(scored, draw.partition)))

        finish = log_rewards if every and iteration % every == 0 else None
        if fuse:
            step = FusedStep(model, sampler, routes, anchor, train.micro, batch)
            return [micro_batches(step, draw, finish)], figures
        rolled = collect.rollout(model, sampler, draw, batch=batch)
        if finish is not None:
            finish(rolled)
        rolled = labels.with_labels(model, sampler, rolled, routes, anchor, batch=batch)
        seed = recipe.seed + iteration
        return collect.step_batches(rolled, sampler, train.updates, train.micro, seed, draw.partition), figures

    course = Course(f"distill {len(teachers)} teachers", experience, prompts, watch)
    return {"metrics": train_policy(recipe, model, run, progress, course, resume=resume)}
