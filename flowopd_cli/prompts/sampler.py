"""The sampler of groups of prompts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any

from flowopd_cli.core.prompt import Prompt

GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class GroupSampler:
    """Draws ``groups`` prompts of ``group_size`` pictures each; every iteration mixes tasks by their weights.

    If ``alternating``, an iteration has prompts of one task, and weights are shares of the iterations.

    A draw is a function of ``seed`` and the iteration: a resumed run needs no cursor, and all processes draw the same.
    """

    prompts: Mapping[str, Sequence[Prompt]]
    weights: Mapping[str, float]
    groups: int
    group_size: int
    seed: int
    alternating: bool = False

    def draw(self, iteration: int) -> tuple[tuple[Prompt, ...], list[int], list[int]]:
        """Prompts ``(groups * group_size)``, the group of each, and its noise seed."""
        rng = random.Random(f"{self.seed}/{iteration}")
        weights = {task: self.weights[task] for task in self.prompts}
        shares = task_counts(weights, 1 if self.alternating else self.groups, iteration)
        if self.alternating:
            shares = {task: count * self.groups for task, count in shares.items()}
        chosen = [prompt for task, count in shares.items() for prompt in self._pick(rng, self.prompts[task], count)]
        rng.shuffle(chosen)
        prompts = tuple(prompt for prompt in chosen for _ in range(self.group_size))
        group = [i for i in range(len(chosen)) for _ in range(self.group_size)]
        return prompts, group, [self.noise_seed(iteration, row) for row in range(len(prompts))]

    def spares(self, iteration: int, tried: Sequence[int]) -> list[tuple[Prompt, list[int]]]:
        """A replacement for each of the groups ``tried``, in this order, and its pictures' noise seeds.

        A replacement has the group's task and is not in the iteration's draw; none repeats while there are enough. Each
        is a function of ``seed``, the iteration and the groups before it in ``tried``.
        """
        prompts, group, _ = self.draw(iteration)
        task_of = {g: prompt.task for prompt, g in zip(prompts, group, strict=True)}
        ids = {id(prompt) for prompt in prompts}
        left: dict[str, Iterator[Prompt]] = {}
        replacements: list[tuple[Prompt, list[int]]] = []
        for attempt, task in enumerate(task_of[g] for g in tried):
            if task not in left:
                pool = [p for p in self.prompts[task] if id(p) not in ids] or list(self.prompts[task])
                random.Random(f"{self.seed}/{iteration}/spare/{task}").shuffle(pool)
                left[task] = cycle(pool)
            seeds = [self.noise_seed(iteration, f"spare/{attempt}/{row}") for row in range(self.group_size)]
            replacements.append((next(left[task]), seeds))
        return replacements

    @staticmethod
    def _pick(rng: random.Random, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
        """``count`` prompts, without repeats while there are enough; tags, where prompts have them, evenly."""
        tags: dict[Any, list[Prompt]] = {}
        for prompt in prompts:
            tags.setdefault(prompt.metadata.get("tag"), []).append(prompt)
        order = list(tags)
        rng.shuffle(order)
        chosen: list[Prompt] = []
        for index, tag in enumerate(order):
            share = count // len(order) + (index < count % len(order))
            pool = tags[tag]
            chosen += rng.sample(pool, share) if share <= len(pool) else rng.choices(pool, k=share)
        return chosen

    def noise_seed(self, iteration: int, row: int | str) -> int:
        """The noise seed of a picture: a row of the iteration's draw, or the name of another picture."""
        digest = hashlib.sha256(f"{self.seed}/{iteration}/{row}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def task_counts(weights: Mapping[str, float], total: int, iteration: int) -> dict[str, int]:
    """Split ``total`` groups over tasks in proportion to ``weights``: a function of the iteration alone.

    ``total`` equally spaced points are laid over the tasks' shares of [0, 1) (systematic sampling), so that no count is
    more than one off its exact share; their common offset moves by the golden ratio, so that long-run shares are exact.
    """
    whole, offset = sum(weights.values()), (iteration * GOLDEN) % 1
    counts, below, edge = {}, 0, 0.0
    for name, weight in weights.items():
        edge += weight / whole
        reached = min(total, max(below, ceil(edge * total - offset - 1e-9)))
        counts[name] = reached - below
        below = reached
    counts[next(reversed(counts))] += total - below
    return counts
