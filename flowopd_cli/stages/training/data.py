"""Prompts, rewards and samplers of a recipe, and the draw of an iteration."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, choose_trained_steps, draw_window, trained_steps
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.core.types import RewardResult
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.prompts.files import load_prompts
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.recipe import (
    AnchorSpec,
    DistillRecipe,
    PromptSpec,
    RewardSpec,
    SamplingSpec,
    TeacherRecipe,
    TrainSpec,
)
from flowopd_cli.rewards.base import Reward, RewardMix, Weighted
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.threads import Worker
from flowopd_cli.train.collect import Draw, Scorer, deal_samples
from flowopd_cli.train.partition import Partition, assign_groups


def read_prompts(specs: Sequence[PromptSpec]) -> tuple[dict[str, list[Prompt]], dict[str, float]]:
    """Prompts and weights of each task; a source of several tasks gives each of them its weight."""
    prompts: dict[str, list[Prompt]] = {}
    weights: dict[str, float] = {}
    for spec in specs:
        options = spec.model_dump(include={"task", "split", "limit", "id_prefix"})
        loaded = load_prompts(spec.source, **options)
        for prompt in loaded:
            prompts.setdefault(prompt.task, []).append(prompt)
        for task in sorted({prompt.task for prompt in loaded}):
            weights[task] = weights.get(task, 0.0) + spec.weight
    return prompts, weights


@dataclass(frozen=True)
class Drawer:
    """Draws the prompts of an iteration: a function of the recipe's seed and the iteration alone.

    Each process takes whole groups of the same draw, in numbers that differ by one at most; with fewer groups than
    processes, some have none.
    """

    sampler: GroupSampler
    updates: int = 1
    rank: int = 0
    processes: int = 1

    def __call__(self, iteration: int) -> Draw:
        """This process's prompts, groups and seeds of one iteration, which also seeds all generators."""
        seed_generators(self.sampler.seed, iteration)
        prompts, group, seeds = self.sampler.draw(iteration)
        if self.processes == 1:
            return Draw(prompts, torch.tensor(group), tuple(seeds))
        local = self._local_groups(iteration, group)
        rows = [i for i, g in enumerate(group) if g in local]
        partition = Partition(torch.tensor(rows, dtype=torch.long), len(group), GROUP.gather)
        local_prompts, local_seeds = tuple(prompts[i] for i in rows), tuple(seeds[i] for i in rows)
        return Draw(local_prompts, torch.tensor(group)[rows], local_seeds, partition)

    def fresh(self, iteration: int, tried: Sequence[int], chosen: Sequence[int]) -> Draw:
        """New prompts to replace this process's groups among ``chosen``, following the replacements of ``tried``.

        They keep the groups' numbers. A function of the seed, the iteration and these groups alone.
        """
        spares = self.sampler.spares(iteration, [*tried, *chosen])[len(tried) :]
        local = set(chosen) if self.processes == 1 else self._local_groups(iteration, self.sampler.draw(iteration)[1])
        rows = [(g, prompt, s) for g, (prompt, seeds) in zip(chosen, spares, strict=True) if g in local for s in seeds]
        group = torch.tensor([g for g, _, _ in rows], dtype=torch.long)
        return Draw(tuple(prompt for _, prompt, _ in rows), group, tuple(seed for _, _, seed in rows))

    def refill_seeds(self, iteration: int, numbers: Sequence[int]) -> list[int]:
        """The noise seeds of an iteration's pictures that replace invalid ones: a function of their numbers alone."""
        return [self.sampler.noise_seed(iteration, f"refill/{number}") for number in numbers]

    def _local_groups(self, iteration: int, group: Sequence[int]) -> set[int]:
        """This process's groups, balanced over the optimizer steps that ``step_batches`` makes of the same seed."""
        deal = deal_samples(len(group), self.updates, self.sampler.seed + iteration)
        ranks = assign_groups(torch.tensor(group), deal, self.processes)
        return {g for g, rank in enumerate(ranks) if rank == self.rank}


def make_drawer(
    specs: Sequence[PromptSpec], train: TrainSpec, seed: int, *, alternating: bool = False
) -> tuple[Drawer, dict[str, list[Prompt]]]:
    """The drawer of a training stage, and its prompts by task."""
    prompts, weights = read_prompts(specs)
    sampler = GroupSampler(prompts, weights, train.groups, train.group_size, seed, alternating)
    return Drawer(sampler, train.updates, GROUP.rank, GROUP.size), prompts


def make_rewards(
    specs: Sequence[RewardSpec],
    prompts: Mapping[str, Sequence[Prompt]],
    loaded: Sequence[tuple[RewardSpec, Reward]] = (),
) -> RewardMix:
    """The rewards of a recipe, those of equal name and options among ``loaded`` again.

    Raises :class:`PromptError`: a prompt lacks what its reward needs.
    """

    def build(spec: RewardSpec) -> Reward:
        for other, reward in loaded:
            if (other.name, other.options) == (spec.name, spec.options):
                return reward
        return make_reward(registry.REWARDS.load(spec.name), spec.name, spec.options)

    built = [build(spec) for spec in specs]
    mix = RewardMix([Weighted(reward, spec.weight, spec.task) for reward, spec in zip(built, specs, strict=True)])
    mix.check([prompt for group in prompts.values() for prompt in group])
    return mix


def make_sampler(model: LoadedModel, spec: SamplingSpec, *, seed: int = 0) -> Sampler:
    """The recipe's sampler; ``seed`` places its SDE window."""
    sigmas = model.sigmas(spec.steps, spec.shift) if spec.shift else model.sigmas(spec.steps)
    window = None
    if spec.window is not None:
        window = draw_window(spec.window.size, spec.window.start_min, spec.window.start_max, seed)
    return Sampler(sigmas, make_kernel(spec.kernel, spec.eta, sigmas), spec.guidance, window)


def iteration_sampler(model: LoadedModel, recipe: TeacherRecipe | DistillRecipe, iteration: int) -> Sampler:
    """The sampler of one iteration: its window and trained steps depend on the seed and the iteration alone."""
    seed = recipe.seed + iteration
    sampler = make_sampler(model, recipe.sampling, seed=seed)
    anchor, substeps = AnchorSpec(), 1
    if isinstance(recipe, DistillRecipe):
        anchor, substeps = recipe.anchor, recipe.opd.teacher_substeps
    chances = {"every": anchor.every, "probability": anchor.probability}
    query = recipe.train.query.query
    trained = choose_trained_steps(trained_steps(sampler).steps, seed, query=query, **chances)
    return replace(sampler, trained=trained, substeps=substeps)


def in_background(score: Scorer) -> Worker[tuple[Tensor, Sequence[Prompt]], RewardResult]:
    """Scores the pictures of one rollout in a thread: a reward is never called twice at once."""
    return Worker(torch.no_grad()(lambda batch: score(*batch)))


def seed_generators(seed: int, iteration: int) -> None:
    """Give the generators of all libraries a state that depends on seed, iteration and process alone.

    flowopd itself does not draw from them; a custom reward may, and then scores the same after a resume.
    """
    key = f"{seed}/{iteration}/{GROUP.rank}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
