"""Which teacher for which prompt, and how many groups of which task: functions of the data and the iteration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import RoutingError


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
    """Split ``total`` groups over tasks in proportion to ``weights``, so that long-run shares are exact.

    Task by task the cumulative due number of groups is rounded down, so the count of an iteration is the difference
    of two such numbers: it depends on the iteration alone, and a resumed run cannot lose its place.
    """
    names, whole = list(weights), sum(weights.values())
    edges = [0.0]
    for name in names:
        edges.append(edges[-1] + weights[name] / whole)

    def dealt(groups: int) -> list[int]:
        return [_before(edge, groups) for edge in edges]

    first, last = dealt(total * iteration), dealt(total * (iteration + 1))
    taken = [b - a for a, b in zip(first, last, strict=True)]
    return {name: taken[i + 1] - taken[i] for i, name in enumerate(names)}


def _before(edge: float, groups: int) -> int:
    """How many of ``groups`` groups fall below a share of ``edge``, robust to rounding of the share."""
    return int(edge * groups + 1e-9)
