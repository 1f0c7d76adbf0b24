"""The checkpoints of one run: written atomically, with their provenance, and pruned. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import BestSpec
from flowopd_cli.runs.provenance import Provenance, read_provenance
from flowopd_cli.system import files

PROVENANCE = "origin.json"

Fill = Callable[[Path], None]
Regular = Callable[[int], bool]


def each(step: int) -> bool:
    """Every step is a regular one."""
    return True


class Checkpoints:
    """The folder ``checkpoints/`` of a run: ``step-000100/`` and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of one step is."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps that have one, sound or not, in their order."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(match[1]) for match in (re.fullmatch(r"step-(\d+)", name) for name in names) if match)

    def save(self, step: int, writer: Fill, provenance: Provenance) -> None:
        """Let ``writer`` fill the checkpoint of ``step``, atomically; ``provenance`` is written beside.

        Raises:
            StorageError: it cannot be written; those before are as they were.
        """

        def fill(folder: Path) -> None:
            writer(folder)
            (folder / PROVENANCE).write_text(provenance.model_dump_json(indent=1), encoding="utf-8")

        with files.storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.sync_folder(self.folder.parent)
        files.commit_folder(self.path(step), fill)

    def prune(self, keep: int, also: Iterable[int | None] = (), regular: Regular = each) -> None:
        """Remove all but the newest, the newest ``keep`` of the ``regular`` ones, and those of the steps ``also``."""
        remaining = {*self.steps()[-1:], *list(filter(regular, self.steps()))[-keep:], *also}
        self.remove(step for step in self.steps() if step not in remaining)

    def remove(self, steps: Iterable[int]) -> None:
        """Remove those of the steps; what cannot be removed stays."""
        for step in steps:
            files.drop_folder(self.path(step))

    def newest(self) -> tuple[int, Path] | None:
        """The newest undamaged one and its step, if there is one."""
        for step in reversed(self.steps()):
            if files.is_intact(self.path(step)):
                return step, self.path(step)
        return None

    def provenance(self) -> Provenance | None:
        """What they were made from, by the newest of which that can be read."""
        for step in reversed(self.steps()):
            try:
                return read_provenance(self.path(step) / PROVENANCE)
            except ArtifactError:
                continue
        return None


def best_step(rows: Sequence[Mapping[str, Any]], steps: Iterable[int], best: BestSpec, every: int) -> int | None:
    """Of checkpoints the one with the best mean of a metric over the ``every`` iterations up to it.

    Of equals the first; ``None`` where no row that counts has the metric.
    """
    sign = 1 if best.direction == "max" else -1
    means = {step: _mean(rows, best.metric, step - every, step) for step in sorted(steps)}
    known = {step: sign * mean for step, mean in means.items() if mean is not None}
    return max(known, key=lambda step: (known[step], -step)) if known else None


def _mean(rows: Sequence[Mapping[str, Any]], metric: str, after: int, until: int) -> float | None:
    values = [row.get(metric) for row in rows if after < row.get("iteration", 0) <= until]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None
