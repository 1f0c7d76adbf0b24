"""Tasks in threads that never delay the exit of the program, as the threads of ``ThreadPoolExecutor`` would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


class Background(Future[T]):
    """The future of a task that runs in a daemon thread of its own."""

    def __init__(self, task: Callable[[], T]) -> None:
        super().__init__()
        Thread(target=self._run, args=(task,), daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether the task has ended with an exception, which ``result()`` raises."""
        return self.done() and self.exception() is not None

    def _run(self, task: Callable[[], T]) -> None:
        try:
            self.set_result(task())
        except BaseException as error:
            self.set_exception(error)


def in_parallel(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of the tasks in their order, at most ``workers`` at a time. After an exception no further task starts."""
    if workers <= 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    pending: SimpleQueue[int] = SimpleQueue()
    for number in range(len(tasks)):
        pending.put(number)
    results: dict[int, T] = {}
    failed = Event()

    def work() -> None:
        while not failed.is_set():
            try:
                number = pending.get_nowait()
            except Empty:
                return
            try:
                results[number] = tasks[number]()
            except BaseException:
                failed.set()
                raise

    for thread in [Background(work) for _ in range(min(workers, len(tasks)))]:
        thread.result()
    return [results[number] for number in range(len(tasks))]
