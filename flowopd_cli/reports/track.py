"""``train.track``: figures and sample pictures of a run for TensorBoard, Weights & Biases, MLflow or trackio.

Each tracker has its own thread, so training never waits for one; a tracker that fails is left out with a warning.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flowopd_cli.errors import MissingDependency, one_line
from flowopd_cli.recipe import Recipe, TrainedRecipe
from flowopd_cli.reports.series import number
from flowopd_cli.reports.trackers import RunInfo, open_tracker
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress

EXTRAS = {"tensorboard": "track", "wandb": "track-wandb", "mlflow": "track-mlflow", "trackio": "track-trackio"}
COUNTS = {"iteration", "step"}
TIMEOUT = 60.0  # seconds that a tracker has at the end to send what is left


def check_installed(names: Sequence[str]) -> None:
    """Raise MissingDependency, which names the extra, for a tracker whose package is absent."""
    for name in names:
        module = importlib.util.find_spec(name)
        if module is None or module.origin is None:  # a folder of that name is no package
            raise MissingDependency(name, extra=EXTRAS[name])


def tracked(recipe: Recipe, run: RunDir, progress: Progress) -> Progress:
    """``progress`` that also feeds the recipe's trackers; an absent package raises MissingDependency."""
    names = recipe.train.trackers if isinstance(recipe, TrainedRecipe) and run.writes else ()
    check_installed(names)
    return Tracked(progress, run, recipe, names) if names else progress


class Tracked:
    """A progress listener that also sends figures and pictures to trackers."""

    def __init__(self, progress: Progress, run: RunDir, recipe: Recipe, names: Sequence[str]) -> None:
        self._progress, self._run, self._recipe, self._names = progress, run, recipe, names
        self._threads: list[_TrackerThread] = []
        self._last_picture = 0
        self.note, self.table = progress.note, progress.table

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Open the trackers; those of a resumed run continue its curves."""
        self._progress.start(total, description, done)
        self._last_picture = done
        info = RunInfo.of(self._run, self._recipe, done)
        self._threads = [_TrackerThread(name, info) for name in self._names]

    def step(self, row: Mapping[str, float]) -> None:
        """Send the figures of an iteration, after the pictures of earlier ones."""
        self._progress.step(row)
        iteration = int(row["iteration"])
        self._send_pictures(iteration - 1)
        figures = {name: number(value) for name, value in row.items() if name not in COUNTS}
        self._send("figures", {name: value for name, value in figures.items() if math.isfinite(value)}, iteration)
        self._show_notes()

    def done(self) -> None:
        """Send the last pictures and close the trackers; one that takes longer than a minute is abandoned."""
        self._progress.done()
        self._send_pictures(math.inf)
        deadline = time.monotonic() + TIMEOUT
        self._send("close")
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._show_notes()
        for thread in self._threads:
            if thread.is_alive():
                self.note(f"warning: {thread.tracker}: not finished after {TIMEOUT:g} s; the rest is lost")
        self._threads = []

    def _send_pictures(self, last: float) -> None:
        for iteration, file in self._run.samples() if self._threads else ():
            if self._last_picture < iteration <= last:
                self._send("picture", file, iteration)
                self._last_picture = iteration

    def _send(self, *call: Any) -> None:
        for thread in self._threads:
            thread.calls.put(call)

    def _show_notes(self) -> None:
        """Show the queued notes from this thread, because progress is not thread-safe."""
        for thread in self._threads:
            while not thread.notes.empty():
                self.note(thread.notes.get())


class _TrackerThread(threading.Thread):
    """Makes a tracker's calls in order, until one fails or the tracker is closed."""

    def __init__(self, tracker: str, info: RunInfo) -> None:
        super().__init__(name=f"tracker {tracker}", daemon=True)
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.tracker, self._info = tracker, info
        self.start()

    def run(self) -> None:
        try:
            tracker, method = open_tracker(self.tracker, self._info), ""
            self.notes.put(f"{self.tracker}: {tracker.where}")
            while method != "close":
                method, *arguments = self.calls.get()
                getattr(tracker, method)(*arguments)
        except BaseException as error:  # a library may end its thread in any way
            reason = one_line(error) or type(error).__name__
            self.notes.put(f"warning: {self.tracker} is disabled for this run: {reason[:300]}; the run continues")
