"""``train.track``: figures and sample pictures of a run for TensorBoard, Weights & Biases, MLflow or trackio.

All of them through accelerate's trackers. Each has a thread of its own: training waits for none of them, and one that
fails is left out with a warning.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowopd_cli.errors import MissingDependency, one_line
from flowopd_cli.recipe import Recipe, TrainedRecipe
from flowopd_cli.reports.trackers import Told, told_of
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress

EXTRAS = {"tensorboard": "track", "wandb": "track-wandb", "mlflow": "track-mlflow", "trackio": "track-trackio"}
COUNTS = {"iteration", "step"}
PATIENCE = 60.0  # seconds that a tracker has at the end for what it has not sent


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is absent.

    Raises:
        MissingDependency: names the extra.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a mere folder of that name is no package
            raise MissingDependency(name, extra=EXTRAS[name])


def tracked(recipe: Recipe, run: RunDir, progress: Progress) -> Progress:
    """``progress``, with the recipe's trackers beside it.

    Raises:
        MissingDependency: a tracker is not installed.
    """
    names = recipe.train.trackers if isinstance(recipe, TrainedRecipe) and run.writes else ()
    check_installed(names)
    return Tracked(progress, run, recipe, names) if names else progress


class Tracked:
    """A progress listener that hands what it hears to trackers as well."""

    def __init__(self, progress: Progress, run: RunDir, recipe: Recipe, names: Sequence[str]) -> None:
        """Listens for ``progress``, which hears all that this one does."""
        self._progress, self._run, self._recipe, self._names = progress, run, recipe, names
        self._lines: list[_Line] = []
        self._sent = 0
        self.note, self.table = progress.note, progress.table

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Open the trackers; of a resumed run they go on where it does."""
        self._progress.start(total, description, done)
        self._sent = done
        self._lines = [_Line(name, told_of(self._run, self._recipe, done)) for name in self._names]

    def step(self, row: Mapping[str, float]) -> None:
        """The figures of an iteration, after the pictures of earlier ones."""
        self._progress.step(row)
        self._send_pictures(int(row["iteration"]) - 1)
        figures = {name: float(v) for name, v in row.items() if name not in COUNTS and _finite(v)}
        self._send("figures", figures, int(row["iteration"]))
        self._complain()

    def done(self) -> None:
        """Send the last pictures and close the trackers; what is not sent after a minute is given up."""
        self._progress.done()
        self._send_pictures(None)
        for line in self._lines:
            line.end()
        until = time.monotonic() + PATIENCE
        for line in self._lines:
            line.wait(max(0.0, until - time.monotonic()))
        self._complain()
        self._lines = []

    def _send_pictures(self, last: int | None) -> None:
        for iteration, file in self._run.samples() if self._lines else ():
            if iteration > self._sent and (last is None or iteration <= last):
                self._send("picture", file, iteration)
                self._sent = iteration

    def _send(self, *call: Any) -> None:
        for line in self._lines:
            line.calls.put(call)

    def _complain(self) -> None:
        for line in self._lines:
            for text in line.heard():
                self._progress.note(text)


class _Line(threading.Thread):
    """A tracker's thread: its calls in their order, up to the first that fails."""

    def __init__(self, name: str, told: Told) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._tracker, self._told = name, told
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.start()

    def end(self) -> None:
        """After what was sent nothing more comes."""
        self.calls.put(None)

    def wait(self, seconds: float) -> None:
        """Give it so long to finish."""
        self.join(seconds)
        if self.is_alive():
            self._said.put(f"warning: {self._tracker}: not through after {PATIENCE:g} s; what it has not sent is lost")

    def heard(self) -> list[str]:
        """What it has said since the last time."""
        said = []
        while not self._said.empty():
            said.append(self._said.get())
        return said

    def run(self) -> None:
        """Open the tracker, make its calls, close it."""
        try:
            from flowopd_cli.reports.trackers import open_board

            board = open_board(self._tracker, self._told)
            self._said.put(f"{self._tracker}: {board.where}")
            while (call := self.calls.get()) is not None:
                method: Callable[..., None] = getattr(board, call[0])
                method(*call[1:])
            board.close()
        except BaseException as error:  # a library may end its thread in any way
            told = one_line(error) or type(error).__name__
            self._said.put(f"warning: {self._tracker} is left out from here on: {told[:300]}; the run goes on")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
