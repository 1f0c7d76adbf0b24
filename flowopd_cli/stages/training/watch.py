"""What a policy loses while its reward rises: figures of fixed prompts and seeds, for the log only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli import registry
from flowopd_cli.core import statistics
from flowopd_cli.core.losses import velocity_matching
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.steps import kl
from flowopd_cli.core.types import Conditioning, RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.recipe import PromptSpec, SamplingSpec, TrainedRecipe
from flowopd_cli.rewards.base import RewardMix
from flowopd_cli.stages.training.data import (
    Drawer,
    in_background,
    make_rewards,
    make_sampler,
    read_prompts,
    seed_generators,
)
from flowopd_cli.stages.training.model import saved_policy
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.train import collect
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.labels import Rows, label
from flowopd_cli.train.routes import Teacher

DRAW = -1  # the iteration that seeds the draw: not one of the training's
PICTURES = (statistics.brightness, statistics.saturation, statistics.high_frequency)


@dataclass(frozen=True)
class _States:
    """States of the base, one for each picture, and the base's velocity there."""

    latents: Float[Tensor, "B C H W"]
    sigma: Float[Tensor, " B"]
    sigma_next: Float[Tensor, " B"]
    cond: Conditioning
    velocity: Float[Tensor, "B C H W"]


@dataclass
class Watch:
    """Draws the same ``draw`` each time and measures it; ``rewards`` are ``None`` if there are none to score.

    The distance to the base is taken at states that the base visits with the same seeds, so it compares over a run.
    """

    recipe: TrainedRecipe
    draw: Draw
    rewards: RewardMix | None
    _states: _States | None = None

    @torch.no_grad()
    def __call__(self, model: LoadedModel, step: int) -> dict[str, float]:
        """The figures of the adapter that the run would save after an optimizer step; all processes take part."""
        started = time.perf_counter()
        seed_generators(self.recipe.seed, DRAW)
        with saved_policy(model, self.recipe.train, step) as adapter:
            columns = {**self._drawn(model, adapter), **self._distance(model, adapter)}
        figures = collect.means_of_all(columns, self.draw.partition)
        seconds = time.perf_counter() - started
        return {**{f"watch/{name}": value for name, value in figures.items()}, "seconds_watch": seconds}

    def _drawn(self, model: LoadedModel, adapter: str) -> dict[str, Tensor]:
        """Scores and statistics of pictures and latents ``(B,)``."""
        scoring = partial(in_background, self._measure)
        batch = self.recipe.train.rollout_batch
        grader = collect.Grader(model, scoring, batch, adapter=adapter, keep="last")
        rolled = grader(make_sampler(model, _deterministic(self.recipe)), self.draw)
        final, scores = rolled.trajectory.final, {} if rolled.rewards is None else rolled.rewards.scores
        columns = {**scores, "latent_norm": statistics.latent_norm(final)}
        if self.recipe.watch.group_size > 1:
            columns["diversity"] = statistics.diversity(final, rolled.group)
        return columns

    def _measure(self, images: Float[Tensor, "b 3 Y X"], prompts: Sequence[Prompt]) -> RewardResult:
        """The scores of a batch and the statistics of its pictures, by the names of their figures."""
        measured = {function.__name__: function(images).cpu() for function in PICTURES}
        if self.rewards is None:
            return RewardResult(torch.zeros(len(prompts)), measured, torch.ones(len(prompts), dtype=torch.bool))
        result = self.rewards(images, prompts)
        scores = {f"reward/{name}": column for name, column in result.scores.items() if "/" not in name}
        totals = {"reward": result.total, "invalid": (~result.valid).float()}
        return replace(result, scores={**totals, **scores, **measured})

    def _distance(self, model: LoadedModel, adapter: str) -> dict[str, Tensor]:
        """The KL of the recipe's sampling step to the base's; of a deterministic one the squared velocity distance."""
        states = self._states = self._states or self._visit(model)
        velocity = self._velocity(model, states.latents, states.sigma, states.cond, adapter)
        if self.recipe.sampling.deterministic:
            return {"distance_base": 2 * velocity_matching(velocity, states.velocity)}
        sampler, place = make_sampler(model, self.recipe.sampling), (states.latents, states.sigma, states.sigma_next)
        return {"kl_base": kl(sampler.step(velocity, *place), sampler.step(states.velocity, *place))}

    def _visit(self, model: LoadedModel) -> _States:
        """A state of the base's trajectory for each picture, at all steps in turn but the last."""
        sampler = make_sampler(model, _deterministic(self.recipe))
        rolled = collect.rollout(model, sampler, self.draw, adapter=None, batch=self.recipe.train.rollout_batch)
        partition, index = self.draw.partition, torch.arange(len(self.draw.prompts))
        step = (index if partition is None else partition.rows) % max(1, len(sampler.sigmas) - 2)
        latents = rolled.trajectory.latents[index, step].float()
        sigmas = sampler.sigmas.to(latents.device, torch.float32)
        velocity = self._velocity(model, latents, sigmas[step], rolled.cond, None)
        return _States(latents, sigmas[step], sigmas[step + 1], rolled.cond, velocity)

    def _velocity(
        self, model: LoadedModel, latents: Tensor, sigma: Tensor, cond: Conditioning, adapter: str | None
    ) -> Tensor:
        owner, batch = Teacher(adapter, self.recipe.sampling.guidance), self.recipe.train.rollout_batch
        _, velocity = label(model, Rows.of_states(latents, sigma, cond), (), owner, batch=batch)
        assert velocity is not None
        return velocity


def make_watch(recipe: TrainedRecipe, rewards: RewardMix | None) -> Watch | None:
    """The watch of a training, ``None`` if it is off; ``rewards`` are the recipe's own, if it has loaded them.

    Raises :class:`PromptError`: a prompt cannot be read, or lacks what a reward needs.
    """
    if not recipe.train.watch_every:
        return None
    spec, own = recipe.watch, () if rewards is None else rewards.parts
    sources = [_held_out(source) for source in recipe.prompts] if spec.prompts is None else spec.prompts
    prompts, weights = read_prompts(sources)
    sampler = GroupSampler(prompts, weights, spec.groups, spec.group_size, recipe.seed)
    draw = Drawer(sampler, rank=GROUP.rank, processes=GROUP.size)(DRAW)
    if specs := spec.rewards or recipe.rewards:
        loaded = [(reward, part.reward) for reward, part in zip(recipe.rewards, own, strict=False)]
        rewards = make_rewards(specs, prompts, loaded)
    return Watch(recipe, draw, rewards)


def _held_out(spec: PromptSpec) -> PromptSpec:
    """The prompts of a named source that it keeps for validation; the same prompts if it keeps none."""
    held_out = spec.model_copy(update={"split": "validation"})
    if spec.split == "train" and spec.source in registry.PROMPTS.names():
        with suppress(PromptError, LookupError, ValueError):  # what a source raises for an unknown split
            read_prompts([held_out])
            return held_out
    return spec


def _deterministic(recipe: TrainedRecipe) -> SamplingSpec:
    return recipe.sampling.model_copy(update={"kernel": "ode", "window": None})
