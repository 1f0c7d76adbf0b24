"""A view of a run that another process writes. No torch here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
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
from flowopd_cli.system.paths import is_file

FIGURES = ("reward", "loss", "kl", "kl_anchor", "reward_std", "grad_norm", "clip_fraction", "flat_groups", "invalid")
NONZERO = {"flat_groups", "invalid"}  # shown where they are not always 0
MAX_CURVES, MAX_SAMPLES, MAX_EVENTS, RECENT = 10, 3, 3, 20
WAITING = "waiting"  # the status of a run that has not begun
BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """A figure of every iteration; ``None`` where it was not finite."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class View:
    """A run now: ``done`` of ``total`` iterations, ``seconds`` an iteration, curves, results, last samples and events.

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
        """Whether the run has ended."""
        return self.status not in {"running", WAITING}

    @property
    def eta(self) -> float | None:
        """Seconds to the last iteration, ``None`` where unknown."""
        if self.status != "running" or self.total is None or self.seconds is None:
            return None
        return max(0, self.total - self.done) * self.seconds

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the last value of each curve."""
        fields = {name: getattr(self, name) for name in ("run", "status", "stage", "done", "total", "seconds", "eta")}
        fields["figures"] = {curve.name: curve.values[-1] for curve in self.curves}
        return {**fields, "results": dict(self.results), "samples": self.samples, "events": self.events}


def look(path: Path) -> View:
    """The run at ``path`` now; it need not exist yet.

    Raises:
        ArtifactError: something else is at ``path``, or its manifest is damaged.
    """
    run = RunDir(path, writes=False)
    if not is_run(path):
        if is_file(path):
            raise ArtifactError(f"{path}: is a file, and no run directory")
        if run.used() and not Lock(path / LOCK).taken():
            raise ArtifactError(f"{path}: not a run directory (it has no {MANIFEST}), and not an empty one")
        return View(str(path), WAITING)
    status = status_now(path)  # before the rows, so that the last rows of a run that ends now are not missed
    manifest, rows = read_manifest(path), _rows(run.metrics_file)
    return View(
        str(path),
        status,
        manifest.stage,
        done=_iteration(rows),
        total=_iterations(run),
        seconds=_pace(rows),
        curves=tuple(_curves(rows)),
        results=tuple(_results(run) if manifest.stage == "eval" else _metrics({} if rows else manifest.metrics)),
        samples=tuple(map(str, sorted(run.samples_dir.glob("*.png"))[-MAX_SAMPLES:])),
        events=tuple(
            f"iteration {row.get('iteration')}: {row.get('kind')}: {row.get('text')}"
            for row in _rows(run.events_file)[-MAX_EVENTS:]
        ),
    )


def sparkline(values: Sequence[float | None], width: int, marks: str = BLOCKS) -> str:
    """Values as one letter each, more than ``width`` as means of equal stretches; a gap where there is no value."""
    bins = min(width, len(values))
    edges = [len(values) * i // bins for i in range(bins + 1)] if bins else [0]
    stretches = [[v for v in values[a:b] if v is not None] for a, b in pairwise(edges)]
    means = [statistics.fmean(stretch) if stretch else None for stretch in stretches]
    finite = [mean for mean in means if mean is not None]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    steps = len(marks) - 1
    return "".join(
        " " if mean is None else marks[round((mean - low) / span * steps) if span > 0 else steps // 2] for mean in means
    )


def _rows(file: Path) -> list[Row]:
    """The JSON objects in a file, a line each; a line still being written and any other line are skipped."""
    rows: list[Row] = []
    with suppress(OSError):
        for line in file.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                rows += [value] if isinstance(value, dict) else []
    return rows


def _iteration(rows: Sequence[Row]) -> int:
    iteration = rows[-1].get("iteration") if rows else 0
    return iteration if isinstance(iteration, int) else 0


def _iterations(run: RunDir) -> int | None:
    with suppress(FlowOPDError):
        recipe = run.recipe() if is_file(run.recipe_file) else None
        return recipe.train.iterations if isinstance(recipe, TrainedRecipe) else None
    return None


def _pace(rows: Sequence[Row]) -> float | None:
    """Median seconds of the last iterations, without sample pictures and checkpoints."""
    seconds = [
        sum(_number(value) or 0.0 for name, value in row.items() if name.startswith("seconds"))
        for row in rows[-RECENT:]
    ]
    return statistics.median(seconds) if any(seconds) else None


def _curves(rows: Sequence[Row]) -> Iterator[Curve]:
    names = list(dict.fromkeys(name for row in rows[-RECENT:] for name in row))
    shown = [name for name in FIGURES if name in names and (name not in NONZERO or any(row.get(name) for row in rows))]
    shown += [name for name in names if name.startswith(("reward/", "kl/")) and name.count("/") == 1]
    return (Curve(name, tuple(_number(row.get(name)) for row in rows)) for name in shown[:MAX_CURVES])


def _metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, f"{value:.4g}") for name, value in metrics.items() if _number(value) is not None)


def _results(run: RunDir) -> Iterator[tuple[str, str]]:
    """How many pictures are scored, then the figures of each suite."""
    for file in sorted(run.scored_dir.glob("*")):
        with suppress(OSError):
            yield f"scored ({file.stem})", f"{file.read_bytes().count(bytes([10])):,} pictures"
    with suppress(FlowOPDError, KeyError, TypeError):
        for name, figures in results(run).items():
            error = "" if figures.get("stderr") is None else f" ± {figures['stderr']:.4f}"
            yield name, f"{figures['mean']:.4f}{error}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None
