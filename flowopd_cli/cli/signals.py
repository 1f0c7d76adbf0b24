"""Signals that stop a command: SIGTERM and SIGHUP end it as Ctrl-C does, and the first signal is recorded."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def terminable() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGTERM and SIGHUP raise :class:`KeyboardInterrupt` as Ctrl-C does, unless they are handled
    there. An ignored SIGHUP, as under nohup, stays ignored.

    Yields a function that returns the first of :data:`STOP` received, or ``None``.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handlers = {number: signal.signal(number, stop) for number in (STOP[1:2] if ignored else STOP[1:])}
    except ValueError:  # not the main thread, which alone handles signals
        yield lambda: None
        return
    source, sink = os.pipe()  # the interpreter writes the number of every signal into it
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    wakeup = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    signals: list[int] = []

    def first() -> int | None:
        with suppress(BlockingIOError):
            signals.extend(number for number in os.read(source, 4096) if number in STOP)
        return signals[0] if signals else None

    try:
        yield first
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(source)
        os.close(sink)
