"""Tasks in threads that never delay the exit of the program, as the threads of ``ThreadPoolExecutor`` would."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


class Background(Future[T]):
    """The future of a task that runs in its own daemon thread."""

    def __init__(self, task: Callable[[], T]) -> None:
        super().__init__()
        Thread(target=self._run, args=(task,), daemon=True).start()

    def _run(self, task: Callable[[], T]) -> None:
        try:
            self.set_result(task())
        except BaseException as error:
            self.set_exception(error)


class Worker(Generic[Item, T]):
    """Calls a function on items in one background thread, in their order; at most four items wait.

    The thread uses the CUDA device of the thread that made it.
    """

    def __init__(self, function: Callable[[Item], T]) -> None:
        cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
        self._function, self._cuda = function, cuda if cuda and cuda.is_initialized() else None
        self._device = self._cuda.current_device() if self._cuda else None
        self._items: Queue[tuple[Item] | None] = Queue(4)
        self._canceled = Event()
        self._task = Background(self._run)

    @property
    def failed(self) -> bool:
        """Whether an item raised an error, which :meth:`submit` and :meth:`results` raise."""
        return self._task.done() and self._task.exception() is not None

    def submit(self, item: Item) -> None:
        """Queue an item, once there is room; the error of an earlier one is raised here."""
        self._put((item,))

    def results(self) -> list[T]:
        """The result of every item, in order; the error of one is raised here. No more items may follow."""
        self._put(None)
        return self._task.result()

    def cancel(self) -> None:
        """Wait for the item in progress and drop those that wait."""
        self._canceled.set()
        with suppress(Full):
            self._items.put_nowait(None)
        self._task.exception()  # waits for its end

    def _put(self, item: tuple[Item] | None) -> None:
        while True:
            if self.failed:
                self._task.result()
            with suppress(Full):
                return self._items.put(item, timeout=0.2)

    def _run(self) -> list[T]:
        if self._cuda:
            self._cuda.set_device(self._device)
        results = []
        while (item := self._items.get()) is not None and not self._canceled.is_set():
            results.append(self._function(*item))
        return results


def in_parallel(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of the tasks in order, at most ``workers`` at a time. After an exception no further task starts."""
    if workers <= 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    pending, results = enumerate(tasks), dict[int, T]()

    def work() -> None:
        for number, task in pending:
            try:
                results[number] = task()
            except BaseException:
                deque(pending, maxlen=0)
                raise

    for thread in [Background(work) for _ in range(min(workers, len(tasks)))]:
        thread.result()
    return [results[number] for number in range(len(tasks))]


def end_process(code: int) -> NoReturn:
    """End the program, with the functions of :mod:`atexit` but without the interpreter's own end.

    A thread that returns from C++ during that end would abort the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # one that comes this late changes no code
        signal.signal(number, lambda *_: os._exit(code))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
