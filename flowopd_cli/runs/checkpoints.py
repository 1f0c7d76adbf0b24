"""The checkpoints of one run, each with its provenance. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, UnreadableError
from flowopd_cli.recipe import BestSpec
from flowopd_cli.runs.manifest import read_record
from flowopd_cli.runs.provenance import Provenance
from flowopd_cli.system import files
from flowopd_cli.system.paths import reading

PROVENANCE = "origin.json"

Fill = Callable[[Path], None]
Regular = Callable[[int], bool]


class Checkpoints:
    """The folder ``checkpoints/`` of a run: ``step-000100/`` and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """The checkpoint of one step."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps with a checkpoint, intact or not, in order; raises :class:`UnreadableError`."""
        try:
            with reading(self.folder):
                names = [entry.name for entry in os.scandir(self.folder) if entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))

    def save(self, step: int, writer: Fill, provenance: Provenance) -> None:
        """Let ``writer`` fill the checkpoint of ``step`` atomically, and add its ``provenance``."""

        def fill(folder: Path) -> None:
            writer(folder)
            (folder / PROVENANCE).write_text(provenance.model_dump_json(indent=1), encoding="utf-8")

        with files.storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.sync_folder(self.folder.parent)
        files.commit_folder(self.path(step), fill)

    def prune(self, keep: int, also: Iterable[int | None] = (), regular: Regular = lambda step: True) -> None:
        """Keep the newest, the newest ``keep`` of the ``regular`` ones, and the steps ``also``; remove all others."""
        remaining = {*self.steps()[-1:], *list(filter(regular, self.steps()))[-keep:], *also}
        self.remove(step for step in self.steps() if step not in remaining)

    def remove(self, steps: Iterable[int]) -> None:
        """Remove the checkpoints of ``steps``; one that cannot be removed stays."""
        for step in steps:
            files.drop_folder(self.path(step))

    def newest(self) -> tuple[int, Path] | None:
        """The step and path of the newest intact one, if any.

        Raises :class:`UnreadableError`: a newer one may not be read.
        """
        intact = ((step, self.path(step)) for step in reversed(self.steps()) if files.is_intact(self.path(step)))
        return next(intact, None)

    def provenance(self) -> Provenance | None:
        """The provenance of the newest one with a readable record."""
        for step in reversed(self.steps()):
            try:
                return read_record(self.path(step) / PROVENANCE, Provenance, "provenance of a checkpoint")
            except UnreadableError:
                raise
            except ArtifactError:
                continue
        return None


def best_step(rows: Sequence[Mapping[str, Any]], steps: Iterable[int], best: BestSpec, every: int) -> int | None:
    """The checkpoint with the best mean of a metric over the ``every`` iterations up to it; the first of equal ones.
    ``None`` if none of these rows has the metric.
    """
    sign = 1 if best.direction == "max" else -1
    means = {step: _mean(rows, best.metric, step - every, step) for step in sorted(steps)}
    scores = {step: sign * mean for step, mean in means.items() if mean is not None}
    return max(scores, key=lambda step: (scores[step], -step)) if scores else None


def _mean(rows: Sequence[Mapping[str, Any]], metric: str, after: int, until: int) -> float | None:
    values = [row.get(metric) for row in rows if after < row.get("iteration", 0) <= until]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None
