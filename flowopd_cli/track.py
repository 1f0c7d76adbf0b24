"""``train.track: tensorboard``: the rows of a run's metrics as TensorBoard curves, beside the metrics file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flowopd_cli.errors import MissingDependency
from flowopd_cli.files import storing
from flowopd_cli.progress import Progress
from flowopd_cli.recipe import Recipe, TrainedRecipe
from flowopd_cli.run import RunDir


class TensorBoard:
    """A progress listener that also writes the figures of every iteration into the run's ``tensorboard/``."""

    def __init__(self, progress: Progress, run: RunDir) -> None:
        """Listens for ``progress``, which hears all that this one does.

        Raises:
            MissingDependency: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("tensorboard", extra="track") from error
        self._open: Any = SummaryWriter
        self._progress, self._folder = progress, run.tensorboard_dir
        self._writer: Any = None
        self.note, self.table = progress.note, progress.table

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Open the curves; a resumed run takes away what was drawn after its checkpoint."""
        self._progress.start(total, description, done)
        self._writer = self._open(str(self._folder), purge_step=done + 1 if done else None)

    def step(self, row: Mapping[str, float]) -> None:
        """One point for each figure, at the row's iteration.

        Raises:
            StorageError: they cannot be written; TensorBoard says so at some later step.
        """
        self._progress.step(row)
        with storing(self._folder):
            for name, value in row.items():
                if name != "iteration":
                    self._writer.add_scalar(name, value, int(row["iteration"]))

    def done(self) -> None:
        """Close the file; what cannot be written of the last points is in the metrics too."""
        self._progress.done()
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()


def tracked(recipe: Recipe, run: RunDir, progress: Progress) -> Progress:
    """``progress``, with curves beside it where the recipe asks for them."""
    wanted = isinstance(recipe, TrainedRecipe) and recipe.train.track == "tensorboard" and run.writes
    return TensorBoard(progress, run) if wanted else progress
