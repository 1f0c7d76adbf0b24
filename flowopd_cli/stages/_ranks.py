"""Several processes that share the work of one stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from flowopd_cli.errors import FlowOPDError

T = TypeVar("T")
LONG = timedelta(days=7)  # one process may have far more to judge than another


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def together(work: Callable[[], list[T]]) -> list[T]:
    """What all processes make, by rank; an error of one is raised in all of them, so that none waits for ever.

    Raises:
        FlowOPDError: the first process that could not do its part says why.
    """
    made: list[T] = []
    fault: FlowOPDError | None = None
    try:
        made = work()
    except FlowOPDError as error:
        fault = error
    faults = gather([str(fault)] if fault is not None else [])
    if fault is not None:
        raise fault
    if faults:
        raise FlowOPDError(faults[0])
    return gather(made)


def gather(items: list[T]) -> list[T]:
    """The items of all processes, by rank; every process gets them, and none goes on before all are here."""
    _, world = rank_and_world()
    if world == 1:
        return items
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=LONG)
    found: list[list[T]] = [[] for _ in range(world)]
    dist.all_gather_object(found, items)
    return [item for part in found for item in part]
