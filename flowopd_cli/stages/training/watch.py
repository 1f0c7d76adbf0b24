"""What a policy loses while its reward rises: figures of fixed prompts and seeds, for the log only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
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
from flowopd_cli.core.sampler import SeededNoise
from flowopd_cli.core.steps import kl
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.recipe import DistillRecipe, PromptSpec, SamplingSpec, TrainedRecipe
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
from flowopd_cli.train.routes import Target, Teacher, sole

DRAW = -1  # the iteration that seeds the draw: not one of the training's
PICTURES = (statistics.brightness, statistics.saturation, statistics.high_frequency)


@dataclass(frozen=True)
class _States:
    """Fixed states of some rows of the draw, and the velocity of each row's target there."""

    at: Rows
    latents: Float[Tensor, "n C H W"]
    sigma_next: Float[Tensor, " n"]
    velocity: Float[Tensor, "n C H W"]
    tasks: tuple[str, ...]


@dataclass
class Watch:
    """Draws the same ``draw`` each time and measures it; ``rewards`` are ``None`` if there are none to score.

    ``targets`` has the target of each prompt in a distillation, ``None`` where its task has no teacher. Distances are
    taken at fixed states, functions of the seeds and frozen weights alone, so they compare over a run.
    """

    recipe: TrainedRecipe
    draw: Draw
    rewards: RewardMix | None
    targets: Sequence[Target | None] = ()
    _states: dict[str, _States] | None = None

    @torch.no_grad()
    def __call__(self, model: LoadedModel, step: int) -> dict[str, float]:
        """The figures of the adapter that the run would save after an optimizer step; all processes take part."""
        started = time.perf_counter()
        seed_generators(self.recipe.seed, DRAW)
        with saved_policy(model, self.recipe.train, step) as adapter:
            columns = {**self._drawn(model, adapter), **self._distances(model, adapter)}
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

    def _distances(self, model: LoadedModel, adapter: str) -> dict[str, Tensor]:
        """The KL of the recipe's sampling step to that of base and targets at the fixed states, by row and by task.

        For a deterministic sampler the distance to the base is that of velocities, squared.
        """
        self._states = self._states or self._fixed_states(model)
        owner, columns = Teacher(adapter, self.recipe.sampling.guidance), {}
        sampler, batch = make_sampler(model, self.recipe.sampling), self.recipe.train.rollout_batch
        for name, states in self._states.items():
            at = states.at
            _, velocity = label(model, at, (), owner, batch=batch)
            assert velocity is not None
            if name == "base" and self.recipe.sampling.deterministic:
                columns["distance_base"] = 2 * velocity_matching(velocity, states.velocity)
                continue
            place = (states.latents, at.sigmas, states.sigma_next)
            divergence = kl(sampler.step(velocity, *place), sampler.step(states.velocity, *place))
            if name == "base":
                columns["kl_base"] = divergence
                continue
            for task in dict.fromkeys(states.tasks):
                columns[f"{name}/{task}"] = divergence[torch.tensor([other == task for other in states.tasks])]
        return columns

    def _fixed_states(self, model: LoadedModel) -> dict[str, _States]:
        """States of the base's trajectories, of the targets' own, and of the base's final latents noised again."""
        base = sole(Teacher(None, self.recipe.sampling.guidance))
        everyone = dict.fromkeys(range(len(self.draw.prompts)), base)
        visited, final = self._follow(model, everyone)
        states = {"base": self._labelled(model, everyone, visited)}
        if self.targets:
            routed = {row: target for row, target in enumerate(self.targets) if target is not None}
            states["kl"] = self._labelled(model, routed, self._follow(model, routed)[0])
            level = self._levels(model, routed)[0].view(-1, 1, 1, 1)
            mixed = (1 - level) * final[list(routed)] + level * self._noise(model, routed, "noised")
            states["kl_noised"] = self._labelled(model, routed, mixed)
        return states

    def _follow(self, model: LoadedModel, targets: Mapping[int, Target]) -> tuple[Tensor, Tensor]:
        """Follow the velocity of each row's target without noise: the states at the rows' own steps, and the last."""
        sampler = make_sampler(model, _deterministic(self.recipe))
        noise = SeededNoise(tuple(self.draw.seeds[row] for row in targets), model.latent_shape)
        latents = self._noise(model, targets, "initial")
        own, visited = self._levels(model, targets)[0], latents.clone()
        for t in range(len(sampler.sigmas) - 1):
            sigma, following = sampler.levels(t, latents)
            visited = torch.where((own == sigma).view(-1, 1, 1, 1), latents, visited)
            velocity = self._velocity(model, targets, latents, (sigma, following))
            latents, _ = sampler.advance(velocity, latents, t, noise)
        return visited, latents

    def _levels(self, model: LoadedModel, rows: Iterable[int]) -> tuple[Tensor, Tensor]:
        """``sigma`` and ``sigma_next`` of each row: those of all sampling steps in turn but the last."""
        sigmas = make_sampler(model, self.recipe.sampling).sigmas.to(model.device, torch.float32)
        partition, index = self.draw.partition, torch.tensor(list(rows), dtype=torch.long)
        step = (index if partition is None else partition.rows[index]) % max(1, len(sigmas) - 2)
        return sigmas[step], sigmas[step + 1]

    def _noise(self, model: LoadedModel, rows: Iterable[int], purpose: str) -> Tensor:
        seeds = tuple(self.draw.seeds[row] for row in rows)
        noise = SeededNoise(seeds, model.latent_shape).named(purpose) if seeds else torch.zeros(0, *model.latent_shape)
        return noise.to(model.device)

    def _labelled(self, model: LoadedModel, targets: Mapping[int, Target], latents: Tensor) -> _States:
        sigma, following = self._levels(model, targets)
        tasks = tuple(self.draw.prompts[row].task for row in targets)
        velocity = self._velocity(model, targets, latents, (sigma, following))
        return _States(self._at(model, targets, latents, sigma), latents, following, velocity, tasks)

    def _velocity(
        self, model: LoadedModel, targets: Mapping[int, Target], latents: Tensor, levels: tuple[Tensor, Tensor]
    ) -> Tensor:
        """That of each row's target, averaged over the step between the levels where the training's labels are."""
        substeps = self.recipe.opd.teacher_substeps if isinstance(self.recipe, DistillRecipe) else 1
        at = replace(self._at(model, targets, latents, levels[0]), sigmas_next=levels[1], substeps=substeps)
        return label(model, at, list(targets.values()), batch=self.recipe.train.rollout_batch)[0]

    def _at(self, model: LoadedModel, rows: Iterable[int], latents: Tensor, sigma: Tensor) -> Rows:
        prompts = [self.draw.prompts[row] for row in rows]
        texts = tuple(prompt.text for prompt in prompts)
        return Rows.of_states(latents, sigma, collect.encoded(model, prompts), texts)


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
