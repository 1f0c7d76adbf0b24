"""A view of a run that another process writes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import TrainedRecipe
from flowopd_cli.reports.series import Rows, column, finite, number, thinned
from flowopd_cli.reports.series import names as names_of
from flowopd_cli.runs.evaluations import by_guidance
from flowopd_cli.runs.layout import part_name
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import LOCK, MANIFEST, Manifest, is_run, read_manifest, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_file
from flowopd_cli.system.json_files import plain

FIGURES = ("reward", "loss", "kl", "kl_anchor", "reward_std", "grad_norm", "clip_fraction", "flat_groups", "invalid")
HEADLINE = ("reward", "kl", "loss")  # the first that there is tells how far a training is
NONZERO = {"flat_groups", "invalid"}  # shown where they are not always 0
MAX_CURVES, MAX_SAMPLES, MAX_EVENTS, RECENT = 10, 3, 3, 20
WAITING = "waiting"
BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass(frozen=True)
class View:
    """A run now: ``done`` of ``total`` iterations, ``seconds`` an iteration, curves, results, last samples and events.

    ``status`` is the manifest's, ``interrupted`` for a killed run, ``waiting`` for one that has not begun. A curve has
    a value for each iteration, NaN where it was not finite; of a watched figure, one for each watch.
    """

    run: str
    status: str
    stage: str = ""
    done: int = 0
    total: int | None = None
    seconds: float | None = None
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[str] = ()
    events: Sequence[str] = ()

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

    @property
    def progress(self) -> str:
        """``iteration 20 of 50, reward 0.8125``, with the reward, KL or loss of the last iteration; empty before it."""
        if not self.done:
            return ""
        text = f"iteration {self.done}" + ("" if self.total is None else f" of {self.total}")
        name = next((name for name in HEADLINE if name in self.curves), None)
        return text if name is None else f"{text}, {name} {self.curves[name][-1]:.4f}"

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the last value of each curve."""
        figures = {name: values[-1] for name, values in self.curves.items()}
        fields = {name: value for name, value in vars(self).items() if name != "curves"}
        return plain({**fields, "eta": self.eta, "figures": figures})


def look(path: Path) -> View:
    """The run at ``path`` now; it need not exist yet.

    Raises :class:`ArtifactError`: something else is at ``path``, or its manifest is damaged.
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
    iteration = rows[-1].get("iteration") if rows else 0
    events = [f"iteration {e.get('iteration')}: {e.get('kind')}: {e.get('text')}" for e in _rows(run.events_file)]
    return View(
        str(path),
        status,
        manifest.stage,
        done=iteration if isinstance(iteration, int) else 0,
        total=_iterations(run),
        seconds=_pace(rows),
        curves=_curves(rows),
        results=dict(_results(run, manifest, rows)),
        samples=[str(file) for file in sorted(run.samples_dir.glob("*.png"))[-MAX_SAMPLES:]],
        events=events[-MAX_EVENTS:],
    )


def sparkline(values: Sequence[float], width: int, marks: str = BLOCKS) -> str:
    """Values as one character each, thinned to ``width``; a space for NaN."""
    means = thinned(values, width)
    low, high = min(finite(means), default=0.0), max(finite(means), default=0.0)
    steps = len(marks) - 1
    return "".join(
        " " if mean != mean else marks[round((mean - low) / (high - low) * steps) if high > low else steps // 2]
        for mean in means
    )


def _rows(file: Path) -> Rows:
    """The JSON objects in a file, a line each; other lines and the last one, which is being written, are skipped."""
    rows: list[Mapping[str, Any]] = []
    with suppress(OSError):
        for line in file.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                rows += [value] if isinstance(value, dict) else []
    return rows


def _iterations(run: RunDir) -> int | None:
    with suppress(FlowOPDError):
        recipe = run.recipe()
        return recipe.train.iterations if isinstance(recipe, TrainedRecipe) else None
    return None


def _pace(rows: Rows) -> float | None:
    """Median seconds of the last iterations, without sample pictures and checkpoints."""
    recent = rows[-RECENT:]
    seconds = [sum(finite(number(v) for name, v in row.items() if name.startswith("seconds"))) for row in recent]
    return statistics.median(seconds) if any(seconds) else None


def _curves(rows: Rows) -> dict[str, list[float]]:
    names = list(dict.fromkeys(name for row in rows[-RECENT:] for name in row))
    shown = [name for name in FIGURES if name in names and (name not in NONZERO or any(row.get(name) for row in rows))]
    shown += [name for name in names if name.startswith(("reward/", "kl/")) and name.count("/") == 1]
    trained = [row for row in rows if row.get("iteration") != 0]
    watched = {name: finite(column(rows, name)) for name in names_of(rows, "watch/")}
    return {**{name: column(trained, name) for name in shown[:MAX_CURVES]}, **watched}


def _results(run: RunDir, manifest: Manifest, rows: Rows) -> Iterator[tuple[str, str]]:
    """The pictures scored so far and the figures of each suite; of another stage the metrics of a run without rows."""
    if manifest.stage != "eval":
        metrics = {name: number(value) for name, value in manifest.metrics.items()} if not rows else {}
        yield from ((name, f"{value:.4g}") for name, value in metrics.items() if value == value)
        return
    for file in sorted(run.scored_dir.rglob("[0-9]*")):
        with suppress(OSError):
            yield (
                f"scored ({file.relative_to(run.scored_dir).with_suffix('').as_posix()})",
                f"{file.read_bytes().count(bytes([10])):,} pictures",
            )
    with suppress(FlowOPDError, KeyError, TypeError):
        for one in by_guidance(run):
            for name, figures in one.results.items():
                error = "" if figures.get("stderr") is None else f" ± {figures['stderr']:.4f}"
                yield part_name(name, one.part), f"{figures['mean']:.4f}{error}"
