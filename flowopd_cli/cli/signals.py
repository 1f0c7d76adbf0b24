"""Requests to stop a command: which signal came first, and SIGTERM as Ctrl-C. Python and the system, nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[Callable[[], int | None]]:
    """SIGTERM ends the block as Ctrl-C does, by :class:`KeyboardInterrupt`, unless something inside handles it.

    Gives a function that says which of the two came first, whoever handled it, or ``None``.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals stay with whoever owns them
        yield lambda: None
        return
    try:
        with _noted() as first:
            yield first
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _noted() -> Iterator[Callable[[], int | None]]:
    """Have the interpreter write the number of every signal into a pipe, beside calling its handler."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(ends[1], warn_on_full_buffer=False)
    seen: list[int] = []

    def first() -> int | None:
        with suppress(BlockingIOError):
            seen.extend(number for number in os.read(ends[0], 4096) if number in STOP)
        return seen[0] if seen else None

    try:
        yield first
    finally:
        signal.set_wakeup_fd(before)
        for end in ends:
            os.close(end)
