"""What the processes of one run say to each other: everything goes through here, an error of one of them included."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from flowopd_cli.errors import FlowOPDError

T = TypeVar("T")
LONG = timedelta(days=7)  # one process may have far more to judge than another


@dataclass(frozen=True)
class _Fault:
    """What a process sends that cannot go on."""

    text: str
    exit_code: int


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Group:
    """The processes of one run. ``finish`` is called before this one waits for all the others."""

    def __init__(self) -> None:
        self.finish: Callable[[], None] | None = None

    def everyone(self, value: T) -> list[T]:
        """The values that all processes pass here, in their order; each of them has to call it. Alone: ``[value]``.

        Raises:
            FlowOPDError: another one met an error inside :func:`together` instead.
        """
        if rank_and_world()[1] == 1:
            return [value]
        if self.finish is not None:
            self.finish()
        return self.exchange(value)

    def exchange(self, value: T) -> list[T]:
        """:meth:`everyone` without ``finish``.

        Raises:
            FlowOPDError: as there.
        """
        values = _gathered(value)
        for other in values:
            if isinstance(other, _Fault):
                error = FlowOPDError(other.text)
                error.exit_code, error.shared = other.exit_code, True
                raise error
        return values


GROUP = Group()
everyone = GROUP.everyone


def add_up(flat: T) -> T:
    """The sum of every process's tensor ``flat``, in place; after an :func:`everyone`, so that all are there."""
    if rank_and_world()[1] > 1:
        start()
        _dist().all_reduce(flat)
    return flat


@contextmanager
def together() -> Iterator[None]:
    """All processes leave the block in the same way: a user's error of one is raised in the others.

    What is no such error (a bug, no memory) ends its process, and the launcher the others.

    Raises:
        FlowOPDError: another process could not do its part, and why.
    """
    try:
        yield
    except FlowOPDError as error:
        if not error.shared and rank_and_world()[1] > 1:
            error.shared = True
            _gathered(_Fault(str(error), error.exit_code))
        raise
    everyone(None)


def start() -> None:
    """Join the other processes, if that has not been done; a GPU of one's own is to be chosen before."""
    import torch

    if not _dist().is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        _dist().init_process_group(backend, timeout=LONG)
        # A thread of gloo that drops a tensor while the interpreter finalizes aborts the process: end it before that.
        atexit.register(_leave)


def _leave() -> None:
    if _dist().is_initialized():
        _dist().destroy_process_group()


def _gathered(value: Any) -> list[Any]:
    start()
    found: list[Any] = [None] * rank_and_world()[1]
    _dist().all_gather_object(found, value)
    return found


def _dist() -> Any:
    import torch.distributed as dist

    return dist
