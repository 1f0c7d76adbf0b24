"""Which teacher for which prompt, and how many groups of which task: functions of the data and the iteration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import RoutingError

GOLDEN = 0.6180339887498949


def route(prompts: Sequence[Prompt], routing: Collection[str]) -> dict[str, Int[Tensor, " b"]]:
    """Rows of each task, in the order in which tasks first appear.

    Raises:
        RoutingError: a prompt's task has no route.
    """
    check_routes([prompt.task for prompt in prompts], routing)
    rows: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        rows.setdefault(prompt.task, []).append(index)
    return {task: torch.tensor(found) for task, found in rows.items()}


def check_routes(tasks: Iterable[str], routing: Collection[str]) -> None:
    """Refuse a task without a route.

    Raises:
        RoutingError: names the task and the routes there are.
    """
    for task in tasks:
        if task not in routing:
            known = ", ".join(sorted(routing)) or "none"
            raise RoutingError(f"no teacher for task {task!r} (routes: {known}): add --teacher {task}=REF")


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
