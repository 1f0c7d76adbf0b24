"""Prompts from files or registered sources, and the sampler that deals them into groups."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.core.routing import task_counts
from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.files import Row, read_rows


def load_prompts(
    source: str, *, task: str | None = None, split: str = "train", limit: int | None = None
) -> list[Prompt]:
    """The prompts of a registered source, or of a ``.txt`` (one a line) or ``.jsonl`` file.

    A JSONL row is GenEval's metadata form, ``{"prompt": …, "task"?: …, …}``: everything else in it becomes the
    prompt's metadata. ``task`` names the task of prompts whose rows do not. ``split`` applies to registered sources.

    Raises:
        PromptError: no such file, a line that cannot be used (named by number), or a prompt without a task.
    """
    if source in registry.PROMPTS.names():
        prompts: list[Prompt] = list(registry.PROMPTS.load(source)(split))
        prompts = [prompt for prompt in prompts if task is None or prompt.task == task]
    else:
        prompts = [_prompt(row) for row in read_rows(Path(source), task)]
    if not prompts:
        raise PromptError(f"prompts: {source}: no prompt in it" + (f" of task {task!r}" if task else ""))
    return prompts[:limit]


def _prompt(row: Row) -> Prompt:
    if row.task is None:
        way_out = "give it with --prompts FILE,task=NAME"
        if row.place.rpartition(":")[0].endswith(".txt"):
            raise PromptError(f"{row.place}: a text file does not say its task: {way_out}")
        raise PromptError(f'{row.place}: no task: write "task" in the row or {way_out}')
    return Prompt(row.place if row.id is None else row.id, row.text, row.task, row.metadata)


@dataclass(frozen=True)
class GroupSampler:
    """Deals ``groups`` prompts of ``group_size`` pictures each; tasks mix inside every iteration by their weights.

    A draw is a function of ``seed`` and the iteration alone: a resumed run needs no cursor, and every process can
    take its share of the same draw.
    """

    prompts: Mapping[str, Sequence[Prompt]]
    weights: Mapping[str, float]
    groups: int
    group_size: int
    seed: int

    def draw(self, iteration: int) -> tuple[tuple[Prompt, ...], list[int], list[int]]:
        """Prompts ``(groups * group_size)``, the group of each, and its noise seed."""
        rng = random.Random(f"{self.seed}/{iteration}")
        chosen: list[Prompt] = []
        shares = task_counts({task: self.weights[task] for task in self.prompts}, self.groups, iteration)
        for task, count in shares.items():
            chosen += self._pick(rng, self.prompts[task], count)
        rng.shuffle(chosen)
        prompts = tuple(prompt for prompt in chosen for _ in range(self.group_size))
        group = [i for i in range(len(chosen)) for _ in range(self.group_size)]
        return prompts, group, [self._noise(iteration, row) for row in range(len(prompts))]

    def spares(self, iteration: int, tried: Sequence[int]) -> list[tuple[Prompt, list[int]]]:
        """Another prompt in place of each of the groups ``tried``, in this order, and its pictures' noise seeds.

        They are of the group's task and not in the iteration's draw, none twice while there are enough: a function of
        ``seed``, the iteration and the groups before it in ``tried`` alone.
        """
        prompts, group, _ = self.draw(iteration)
        task_of = {g: prompt.task for prompt, g in zip(prompts, group, strict=True)}
        drawn = {id(prompt) for prompt in prompts}
        left: dict[str, Iterator[Prompt]] = {}
        found: list[tuple[Prompt, list[int]]] = []
        for attempt, task in enumerate(task_of[g] for g in tried):
            if task not in left:
                pool = [p for p in self.prompts[task] if id(p) not in drawn] or list(self.prompts[task])
                random.Random(f"{self.seed}/{iteration}/spare/{task}").shuffle(pool)
                left[task] = cycle(pool)
            seeds = [self._noise(iteration, f"spare/{attempt}/{row}") for row in range(self.group_size)]
            found.append((next(left[task]), seeds))
        return found

    @staticmethod
    def _pick(rng: random.Random, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
        """``count`` prompts, without repeats while there are enough; tags, where prompts have them, evenly."""
        tags: dict[Any, list[Prompt]] = {}
        for prompt in prompts:
            tags.setdefault(prompt.metadata.get("tag"), []).append(prompt)
        order = list(tags)
        rng.shuffle(order)
        picked: list[Prompt] = []
        for index, tag in enumerate(order):
            share = count // len(order) + (index < count % len(order))
            pool = tags[tag]
            picked += rng.sample(pool, share) if share <= len(pool) else rng.choices(pool, k=share)
        return picked

    def _noise(self, iteration: int, row: int | str) -> int:
        digest = hashlib.sha256(f"{self.seed}/{iteration}/{row}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
