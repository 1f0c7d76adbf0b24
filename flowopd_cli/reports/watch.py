"""A run as it stands, read again and again while another process writes it. No torch here.

Files are read on from where the last look ended; a line that is being written waits for its end.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import TrainedRecipe
from flowopd_cli.runs.evaluations import results
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import LOCK, MANIFEST, is_run, read_manifest, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.paths import is_dir, is_file

FIRST = ("reward", "loss", "kl", "kl_anchor", "reward_std", "grad_norm", "clip_fraction", "flat_groups", "invalid")
IDLE = {"flat_groups", "invalid"}  # of interest when they are not 0
MOST_CURVES, MOST_SAMPLES, MOST_EVENTS, RECENT = 10, 3, 3, 20
WAITING = "waiting"  # for a run that has not begun
BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass(frozen=True)
class Curve:
    """A figure of every iteration so far; ``None`` where it was not finite."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class View:
    """What there is to see of a run: ``done`` of ``total`` iterations, ``seconds`` for one, figures, last pictures.

    ``status`` is the manifest's, ``interrupted`` for a killed run, ``waiting`` for one that has not begun.
    """

    run: str
    status: str
    stage: str = ""
    done: int = 0
    total: int | None = None
    seconds: float | None = None
    curves: tuple[Curve, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    samples: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self.status not in {"running", WAITING}

    @property
    def eta(self) -> float | None:
        """Seconds to the last iteration, where that can be told."""
        if self.status != "running" or self.total is None or self.seconds is None:
            return None
        return max(0, self.total - self.done) * self.seconds

    def tree(self) -> dict[str, Any]:
        """As JSON values; of each curve its last value."""
        told = {name: getattr(self, name) for name in ("run", "status", "stage", "done", "total", "seconds", "eta")}
        last = {curve.name: curve.values[-1] for curve in self.curves}
        return {**told, "figures": last, "results": dict(self.results), "samples": self.samples, "events": self.events}


class Tail:
    """The rows that a file of JSON lines gained since the last look; a file that was replaced is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fresh = True  # whether the last look began the file anew
        self._at, self._file, self._rest = 0, None, b""

    def more(self) -> list[dict[str, Any]]:
        """New rows, or all of a new file. A line that is no JSON object is passed over."""
        try:
            with self.path.open("rb") as handle:
                told = os.fstat(handle.fileno())
                self.fresh = self._file != told.st_ino or told.st_size < self._at
                if self.fresh:
                    self._at, self._rest = 0, b""
                self._file = told.st_ino
                handle.seek(self._at)
                content = handle.read()
        except OSError:
            self.fresh = False
            return []
        self._at += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


class Watcher:
    """Looks at one run; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._run = RunDir(path, writes=False)
        self._metrics, self._events = Tail(self._run.metrics_file), Tail(self._run.events_file)
        self._rows: list[dict[str, Any]] = []
        self._told: list[dict[str, Any]] = []
        self._total: int | None = None

    def look(self) -> View:
        """The run as it stands.

        Raises:
            ArtifactError: there is something else, or a damaged manifest.
        """
        path = self._run.path
        if not is_run(path):
            if is_file(path):
                raise ArtifactError(f"{path}: is a file, and no run directory")
            if self._run.used() and not Lock(path / LOCK).taken():
                raise ArtifactError(f"{path}: not a run directory (it has no {MANIFEST}), and not an empty one")
            return View(str(path), WAITING)
        status = status_now(path)  # before the rows: the last of a run that ends now are not missed
        stage = read_manifest(path).stage
        self._rows = _joined(self._rows, self._metrics.more())
        more = self._events.more()  # several of them may be of one iteration
        self._told = [*([] if self._events.fresh else self._told), *more]
        return View(
            str(path),
            status,
            stage,
            done=_iteration(self._rows),
            total=self._iterations(),
            seconds=_pace(self._rows),
            curves=tuple(_curves(self._rows)),
            results=tuple(self._results(stage)),
            samples=tuple(str(file) for file in self._samples()),
            events=tuple(_event(row) for row in self._told[-MOST_EVENTS:]),
        )

    def _iterations(self) -> int | None:
        """Those of the recipe, read once; a resumed run that goes further shows the new number at the next start."""
        if self._total is None and is_file(self._run.recipe_file):
            with suppress(FlowOPDError):
                recipe = self._run.recipe()
                self._total = recipe.train.iterations if isinstance(recipe, TrainedRecipe) else None
        return self._total

    def _results(self, stage: str) -> Iterable[tuple[str, str]]:
        """Of an evaluation the pictures scored, then what each suite says; of what logs no rows its figures."""
        if stage != "eval":
            told = {} if self._rows else read_manifest(self._run.path).metrics
            yield from ((name, f"{value:.4g}") for name, value in told.items() if _number(value) is not None)
            return
        for file in sorted(self._run.scored_dir.glob("*")) if is_dir(self._run.scored_dir) else ():
            with suppress(OSError):
                yield f"scored ({file.stem})", f"{file.read_bytes().count(bytes([10])):,} pictures"
        with suppress(FlowOPDError, KeyError, TypeError):
            for name, told in results(self._run).items():
                error = told.get("stderr")
                yield name, f"{told['mean']:.4f}" + ("" if error is None else f" ± {error:.4f}")

    def _samples(self) -> list[Path]:
        with suppress(OSError):
            return sorted(self._run.samples_dir.glob("*.png"))[-MOST_SAMPLES:]
        return []


def sparkline(values: Sequence[float | None], width: int, marks: str = BLOCKS) -> str:
    """Values as one letter each, of more than ``width`` the means of equal stretches; a gap where there is none."""
    bins = min(width, len(values))
    edges = [len(values) * i // bins for i in range(bins + 1)] if bins else [0]
    stretches = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    means = [statistics.fmean(stretch) if stretch else None for stretch in stretches]
    known = [mean for mean in means if mean is not None]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    steps = len(marks) - 1
    return "".join(
        " " if mean is None else marks[round((mean - low) / span * steps) if span > 0 else steps // 2] for mean in means
    )


def _joined(before: list[dict[str, Any]], more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with those that came; a run that went back to a checkpoint says its later iterations again."""
    if not more:
        return before
    first = _iteration(more[:1])
    return [*(row for row in before if _iteration([row]) < first), *more]


def _iteration(rows: Sequence[Mapping[str, Any]]) -> int:
    found = rows[-1].get("iteration") if rows else 0
    return found if isinstance(found, int) else 0


def _pace(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of an iteration, the median of the last ones; sample pictures and checkpoints are not in it."""
    taken = [
        sum(v for k, v in row.items() if k.startswith("seconds") and _number(v) is not None) for row in rows[-RECENT:]
    ]
    return statistics.median(taken) if taken and any(taken) else None


def _curves(rows: Sequence[Mapping[str, Any]]) -> Iterable[Curve]:
    names = list(dict.fromkeys(name for row in rows[-RECENT:] for name in row))
    shown = [name for name in FIRST if name in names and (name not in IDLE or any(row.get(name) for row in rows))]
    shown += [name for name in names if name.startswith(("reward/", "kl/")) and name.count("/") == 1]
    return (Curve(name, tuple(_number(row.get(name)) for row in rows)) for name in shown[:MOST_CURVES])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


def _event(row: Mapping[str, Any]) -> str:
    return f"iteration {row.get('iteration')}: {row.get('kind')}: {row.get('text')}"
