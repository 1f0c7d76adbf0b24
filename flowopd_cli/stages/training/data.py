"""Prompts and rewards of a recipe, and the draw of an iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.prompts.load import load_prompts
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.recipe import PromptSpec, RewardSpec, TrainSpec
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.partition import Partition, assign_groups, deal_samples


def read_prompts(specs: Sequence[PromptSpec]) -> tuple[dict[str, list[Prompt]], dict[str, float]]:
    """Prompts and weights of each task; a source of several tasks gives each of them its weight."""
    prompts: dict[str, list[Prompt]] = {}
    weights: dict[str, float] = {}
    for spec in specs:
        loaded = load_prompts(spec.source, task=spec.task, split=spec.split, limit=spec.limit)
        for prompt in loaded:
            prompts.setdefault(prompt.task, []).append(prompt)
        for task in sorted({prompt.task for prompt in loaded}):
            weights[task] = weights.get(task, 0.0) + spec.weight
    return prompts, weights


@dataclass(frozen=True)
class Drawer:
    """Draws the prompts of an iteration: a function of the recipe's seed and the iteration alone.

    Of several processes each takes whole groups of the same draw, as many as the others or one more or less; where
    there are fewer groups than processes, some have none.
    """

    sampler: GroupSampler
    updates: int = 1
    rank: int = 0
    processes: int = 1

    def __call__(self, iteration: int) -> Draw:
        """This process's prompts, groups and seeds of one iteration."""
        prompts, group, seeds = self.sampler.draw(iteration)
        if self.processes == 1:
            return Draw(prompts, torch.tensor(group), tuple(seeds))
        mine = self._local_groups(iteration, group)
        rows = [i for i, g in enumerate(group) if g in mine]
        partition = Partition(torch.tensor(rows, dtype=torch.long), len(group), GROUP.gather)
        return Draw(
            tuple(prompts[i] for i in rows), torch.tensor(group)[rows], tuple(seeds[i] for i in rows), partition
        )

    def fresh(self, iteration: int, tried: Sequence[int], chosen: Sequence[int]) -> Draw:
        """Other prompts in place of this process's groups of ``chosen``, after those that took the place of ``tried``.

        They keep the groups' numbers. A function of the seed, the iteration and these groups alone.
        """
        spares = self.sampler.spares(iteration, [*tried, *chosen])[len(tried) :]
        mine = set(chosen) if self.processes == 1 else self._local_groups(iteration, self.sampler.draw(iteration)[1])
        own = [(g, prompt, seeds) for g, (prompt, seeds) in zip(chosen, spares, strict=True) if g in mine]
        prompts = tuple(prompt for _, prompt, seeds in own for _ in seeds)
        group = torch.tensor([g for g, _, seeds in own for _ in seeds], dtype=torch.long)
        return Draw(prompts, group, tuple(seed for _, _, seeds in own for seed in seeds))

    def _local_groups(self, iteration: int, group: Sequence[int]) -> set[int]:
        """This process's groups, balanced over the optimizer steps that ``step_batches`` makes of the same seed."""
        deal = deal_samples(len(group), self.updates, self.sampler.seed + iteration)
        return {
            g for g, rank in enumerate(assign_groups(torch.tensor(group), deal, self.processes)) if rank == self.rank
        }


def make_drawer(specs: Sequence[PromptSpec], train: TrainSpec, seed: int) -> tuple[Drawer, dict[str, list[Prompt]]]:
    """The drawer of a training stage, and its prompts by task."""
    prompts, weights = read_prompts(specs)
    sampler = GroupSampler(prompts, weights, train.groups, train.group_size, seed)
    return Drawer(sampler, train.updates, GROUP.rank, GROUP.size), prompts


def make_rewards(specs: Sequence[RewardSpec], prompts: Mapping[str, Sequence[Prompt]]) -> RewardMix:
    """Build the rewards of a recipe, and let them refuse now any prompt that they could not score later.

    Raises:
        RewardError: a reward is unknown or does not take its options.
        PromptError: a prompt lacks what its reward needs.
    """
    built = [make_reward(registry.REWARDS.load(spec.name), spec.name, spec.options) for spec in specs]
    mix = RewardMix([Weighted(reward, spec.weight, spec.task) for reward, spec in zip(built, specs, strict=True)])
    mix.check([prompt for group in prompts.values() for prompt in group])
    return mix
