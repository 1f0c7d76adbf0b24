"""Which teacher labels which prompt: a function of the data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RoutingError


def route(prompts: Sequence[Prompt], routing: Collection[str]) -> dict[str, Int[Tensor, " b"]]:
    """Rows of each task, in order of first appearance; :class:`RoutingError` if a task has no route."""
    check_routes([prompt.task for prompt in prompts], routing)
    rows: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        rows.setdefault(prompt.task, []).append(index)
    return {task: torch.tensor(indices) for task, indices in rows.items()}


def check_routes(tasks: Iterable[str], routing: Collection[str]) -> None:
    """Raise :class:`RoutingError` for the first task without a route."""
    for task in tasks:
        if task not in routing:
            routes = ", ".join(sorted(routing)) or "none"
            raise RoutingError(f"no teacher for task {task!r} (routes: {routes}): add --teacher {task}=REF")
