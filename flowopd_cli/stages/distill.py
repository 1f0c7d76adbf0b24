"""``flowopd distill``: multi-teacher on-policy distillation with manifold anchor regularization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flowopd_cli.core.types import Rollout
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.recipe import DistillRecipe
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.rewards.base import RewardMix
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.data import Drawer, make_drawer, make_rewards
from flowopd_cli.stages.training.fit import Course, iteration_sampler, make_sampler, opd_settings, train_policy
from flowopd_cli.stages.training.model import Roles, encode_ahead, load_model
from flowopd_cli.stages.training.resume import prompts_digest
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import collect, fused, objectives
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.labels import Teacher
from flowopd_cli.train.loop import MicroBatches


def run(
    recipe: DistillRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Rollout, target velocities by route, anchor velocities, ``opd``; no decoding unless rewards are logged."""
    guidance = recipe.sampling.guidance
    drawer, prompts = make_drawer(recipe.prompts, recipe.train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = make_rewards(recipe.rewards, prompts) if recipe.opd.log_rewards_every else None
    model = load_model(recipe.model, recipe.adapter.targets)
    roles = Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    teachers = roles.add_teachers(recipe.routing, guidance)
    anchor = roles.add_anchor(recipe.anchor, guidance)
    run.declare(roles.inputs(recipe.model, prompts_digest(prompts)))
    encode_ahead(model, prompts)
    experience = _Experience(recipe, model, drawer, teachers, anchor, rewards)
    objective = objectives.opd(model, make_sampler(model, recipe.sampling), opd_settings(recipe))
    course = Course(f"distill {len(teachers)} teachers", experience, objective, prompts)
    return {"metrics": train_policy(recipe, model, run, progress, course, resume=resume)}


@dataclass(frozen=True)
class _Experience:
    """The optimizer steps of an iteration, by the recipe's schedule."""

    recipe: DistillRecipe
    model: LoadedModel
    drawer: Drawer
    teachers: Mapping[str, Teacher]
    anchor: Teacher | None
    rewards: RewardMix | None

    def __call__(self, iteration: int) -> tuple[Iterable[MicroBatches], Mapping[str, float]]:
        train, every, rewards = self.recipe.train, self.recipe.opd.log_rewards_every, self.rewards
        sampler, draw = iteration_sampler(self.model, self.recipe, iteration), self.drawer(iteration)
        figures: dict[str, float] = {}
        log = self._logger(rewards, draw, figures) if rewards and every and iteration % every == 0 else None
        if self.recipe.fused:
            step = fused.FusedStep(self.model, sampler, self.teachers, self.anchor, train.micro, train.rollout_batch)
            return [fused.micro_batches(step, draw, log)], figures
        rolled = collect.rollout(self.model, sampler, draw, batch=train.rollout_batch)
        if log is not None:
            log(rolled)
        rolled = collect.with_targets(self.model, sampler, rolled, self.teachers, batch=train.rollout_batch)
        if self.anchor is not None:
            rolled = collect.with_anchor(self.model, sampler, rolled, self.anchor, batch=train.rollout_batch)
        steps = collect.step_batches(
            rolled,
            sampler,
            updates=train.updates,
            micro=train.micro,
            seed=self.recipe.seed + iteration,
            partition=draw.partition,
        )
        return steps, figures

    def _logger(self, rewards: RewardMix, draw: Draw, figures: dict[str, float]):
        """A function that decodes and scores a rollout and adds the figures of the whole draw to ``figures``."""

        @torch.no_grad()
        def log(rolled: Rollout) -> None:
            pictures = collect.with_images(self.model, rolled, batch=self.recipe.train.rollout_batch)
            scored = collect.with_rewards(pictures, rewards)
            figures.update(collect.reward_figures(scored, draw.partition))

        return log
