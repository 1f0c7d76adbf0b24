"""Tasks that mostly wait, in threads that never hold up the end of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A task that has begun in a thread of its own."""

    def __init__(self, task: Callable[[], T]) -> None:
        self._task = task
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error, which :meth:`result` raises."""
        return self._error is not None

    def result(self) -> T:
        """What it returned, when it is done; what it raised is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._task())
        except BaseException as error:
            self._error = error


def in_parallel(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of the tasks in their order, ``workers`` of them at a time; after an error no more are begun."""
    if workers <= 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    results: dict[int, T] = {}
    todo = iter(range(len(tasks)))
    lock = threading.Lock()
    failed = threading.Event()

    def work() -> None:
        while not failed.is_set():
            with lock:
                number = next(todo, None)
            if number is None:
                return
            try:
                results[number] = tasks[number]()
            except BaseException:
                failed.set()
                raise

    for thread in [Background(work) for _ in range(min(workers, len(tasks)))]:
        thread.result()
    return [results[number] for number in range(len(tasks))]
