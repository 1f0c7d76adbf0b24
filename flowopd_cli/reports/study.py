"""The results of a study: means and paired differences over seeds, plots of each metric over each axis and of the
average over its cost, one page.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.reports.charts import SERIES, Chart, Key, axes, svg
from flowopd_cli.reports.page import Listing, Page, render
from flowopd_cli.reports.table import Cell, Table, as_csv, as_latex, as_markdown
from flowopd_cli.runs.evaluations import AVERAGE
from flowopd_cli.runs.layout import REPORT
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.json_files import plain

RESULTS = ("results.csv", "results.json", "table.md", "table.tex")
NOTE = "Mean ± standard error over seeds."
PAIRED = "Differences at equal seeds, then their mean ± standard error over seeds."


@dataclass(frozen=True)
class Row:
    """The evaluation of one combination of axis values and seed.

    ``cpu_seconds`` are those of each stage behind it, ``cost`` those of all their runs; ``None`` if unknown.
    """

    evaluation: str
    values: Mapping[str, Any]
    seed: int
    guidance: float
    metrics: Mapping[str, float]
    cpu_seconds: Mapping[str, float | None]
    cost: float | None
    run: str
    protocol: str


@dataclass(frozen=True)
class Group:
    """The rows of one combination of axis values, a seed each."""

    label: str
    rows: Sequence[Row]

    @property
    def first(self) -> Row:
        """The row of the first seed."""
        return self.rows[0]

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric of each seed that has it."""
        return {row.seed: row.metrics[metric] for row in self.rows if metric in row.metrics}

    def cell(self, metric: str) -> Cell | None:
        """Its mean over seeds; without a standard error if all seeds share one run."""
        values = list(self.by_seed(metric).values())
        mean, error = mean_and_error(values)
        return Cell(mean, error if len({row.run for row in self.rows}) > 1 else None) if values else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error ``s / √n``, ``s`` with ``n - 1`` degrees of freedom; ``None`` for one value."""
    if not values:
        return math.nan, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> tuple[float, float | None]:
    """The mean difference to a reference at equal seeds, and its standard error; NaN without a common seed."""
    return mean_and_error([value - reference[seed] for seed, value in values.items() if seed in reference])


def tidy(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A mapping of the same columns for each row; ``None`` where a row has no such axis, metric or stage."""
    axes, metrics, stages = (
        list(dict.fromkeys(key for row in rows for key in getattr(row, name)))
        for name in ("values", "metrics", "cpu_seconds")
    )
    return [
        {"evaluation": row.evaluation}
        | {axis: row.values.get(axis) for axis in axes}
        | {"seed": row.seed, "eval.guidance": row.guidance}
        | {metric: row.metrics.get(metric) for metric in metrics}
        | {"cpu_seconds": row.cost, **{f"cpu_seconds.{stage}": row.cpu_seconds.get(stage) for stage in stages}}
        | {"run": row.run}
        for row in rows
    ]


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The rows by evaluation, axis values and guidance, in their order."""
    several = {name: len({row.guidance for row in rows if row.evaluation == name}) > 1 for name in _evaluations(rows)}

    def label(row: Row) -> str:
        values = [f"{axis} {value}" for axis, value in row.values.items()]
        values += [f"guidance {row.guidance:g}"] if several[row.evaluation] else []
        name = f"{row.evaluation}: " if len(several) > 1 or not values else ""
        return printable(f"{name}{', '.join(values)}".removesuffix(": "))

    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(label(row), []).append(row)
    return [Group(name, members) for name, members in by_label.items()]


def reference_of(groups: Sequence[Group], reference: Mapping[str, Any] | None) -> Group:
    """The first group with the values of ``reference``, the first of all if none has them."""

    def fits(group: Group) -> bool:
        values = {"evaluation": group.first.evaluation, **group.first.values}
        return all(key in values and values[key] == value for key, value in (reference or {}).items())

    return next(filter(fits, groups), groups[0])


def write(out: Path, page: Page, rows: Sequence[Row], reference: Mapping[str, Any] | None) -> Path:
    """Write ``page`` with the results of a study, and the files of numbers, to the folder ``out``; returns its path."""
    files: dict[str, str] = {}
    if rows:
        groups = groups_of(rows)
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
        table = Table(tuple(metrics), tuple((g.label, tuple(map(g.cell, metrics))) for g in groups), head="cell")
        flat = tidy(rows)
        texts = as_csv(flat), json.dumps(plain(flat), indent=1) + "\n", as_markdown(table), as_latex(table)
        files = dict(zip(RESULTS, texts, strict=True))
        protocols = dict.fromkeys(f"{row.evaluation}: {row.protocol}." for row in rows)
        page = replace(
            page,
            table=table,
            table_note=" ".join([NOTE, *protocols]),
            downloads=files,
            charts=[*cost_charts(groups), *(chart for metric in metrics for chart in charts(metric, groups))],
            listings=[_differences(groups, reference_of(groups, reference), metrics), _costs(groups)],
        )
    for name, content in {**files, REPORT: render(page)}.items():
        atomic_write(out / name, content)
    return out / REPORT


def charts(metric: str, groups: Sequence[Group]) -> Iterable[Chart]:
    """A metric over each axis of each evaluation: a line for each combination of the other axes, bars of one error."""
    for evaluation in _evaluations(group.first for group in groups):
        shown = [group for group in groups if group.first.evaluation == evaluation and group.by_seed(metric)]
        for axis in shown[0].first.values if shown else ():
            lines: dict[str, list[Group]] = {}
            for group in shown:
                lines.setdefault(_others(group.first, axis, shown), []).append(group)
            if len({str(group.first.values[axis]) for group in shown}) > 1:
                yield _chart(metric, axis, lines, f"{evaluation}-{metric}-{axis}")


def _chart(metric: str, axis: str, lines: Mapping[str, Sequence[Group]], name: str) -> Chart:
    values = list(dict.fromkeys(group.first.values[axis] for groups in lines.values() for group in groups))
    places = _places(values)
    figure, ax = axes()
    keys, texts = [], []
    for number, (label, groups) in enumerate(list(lines.items())[: len(SERIES)]):
        cells = {places[group.first.values[axis]]: group.cell(metric) for group in groups}
        points = sorted((x, cell.mean, cell.stderr or 0.0) for x, cell in cells.items() if cell)
        x, y, errors = zip(*points, strict=True)
        ax.errorbar(x, y, yerr=errors, color=SERIES[number], marker="o", markersize=3, elinewidth=0.9)
        keys.append(Key(printable(label)[:40], number))
        texts.append(f"{label or metric} from {y[0]:.3f} to {y[-1]:.3f}")
    if any(not isinstance(value, int | float) for value in values):
        ax.set_xticks(list(places.values()), [printable(str(value))[:20] for value in values])
    ax.set_xlabel(printable(axis))
    ax.set_ylabel(printable(metric))
    title = printable(f"{metric} over {axis}")
    alt = f"{title}: {'; '.join(texts)}"
    caption = _omitted(lines, "lines").strip()
    return Chart(title, alt, svg(figure, name), caption, tuple(keys) if len(lines) > 1 else ())


def cost_charts(groups: Sequence[Group]) -> Iterable[Chart]:
    """The average over CPU-seconds: a point for each cell, with its value of the last axis, a faint one for each seed.

    A color is an evaluation with one combination of the other axes; nothing is drawn of fewer than two cells.
    """
    several = len(_evaluations(group.first for group in groups)) > 1
    points: dict[str, list[tuple[str, Sequence[float], Sequence[float]]]] = {}
    for group in groups:
        first, (*_, last) = group.first, ["", *group.first.values]
        costs = {row.seed: row.cost for row in group.rows if row.cost is not None}
        pairs = [(costs[seed], average) for seed, average in group.by_seed(AVERAGE).items() if seed in costs]
        if pairs:
            siblings = [other for other in groups if other.first.evaluation == first.evaluation]
            parts = [first.evaluation if several else "", _others(first, last, siblings)]
            text = str(first.values.get(last, ""))
            x, y = zip(*pairs, strict=True)
            points.setdefault(": ".join(filter(None, parts)), []).append((text, x, y))
    if sum(map(len, points.values())) < 2:
        return
    figure, ax = axes()
    ax.set_xlabel("CPU-seconds of all runs behind a cell")
    ax.set_ylabel(AVERAGE)
    ax.margins(0.12)
    keys, texts = [], []
    for number, (label, cells) in enumerate(list(points.items())[: len(SERIES)]):
        keys.append(Key(printable(label)[:40], number, mark="●"))
        for text, x, y in cells:
            style: dict[str, Any] = {"color": SERIES[number], "linestyle": "none", "marker": "o"}
            ax.plot(x, y, markersize=3, markeredgewidth=0, alpha=0.35, **style)
            center = statistics.fmean(x), statistics.fmean(y)
            ax.plot(*center, markersize=5, **style)
            ax.annotate(printable(text)[:20], center, (4, 4), textcoords="offset points", fontsize=7)
            texts.append(f"{' '.join(filter(None, (label, text)))} {center[1]:.3f} at {center[0]:.0f}")
    title = f"{AVERAGE} over CPU-seconds"
    caption = "One point a cell, with its value of the last axis; faint: seeds."
    caption += _omitted(points, "colors")
    alt = f"{title}: {'; '.join(texts)}"
    yield Chart(title, alt, svg(figure, "cost"), caption, tuple(keys) if len(keys) > 1 else ())


def _omitted(lines: Mapping[str, Any], what: str) -> str:
    """A sentence on the lines for which there is no color."""
    count = len(lines) - len(SERIES)
    return f" {count} more {what} are in the table." if count > 0 else ""


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Where the values of an axis stand: numbers at their value, others side by side."""
    with suppress(TypeError, ValueError):
        places = {value: float(value) for value in values if not isinstance(value, bool)}
        if len(places) == len(values) and all(map(math.isfinite, places.values())):
            return places
    return {value: float(index) for index, value in enumerate(values)}


def _others(row: Row, axis: str, groups: Sequence[Group]) -> str:
    values = [f"{name} {value}" for name, value in row.values.items() if name != axis]
    several = len({group.first.guidance for group in groups}) > 1
    return ", ".join([*values, f"guidance {row.guidance:g}"] if several else values)


def _differences(groups: Sequence[Group], reference: Group, metrics: Sequence[str]) -> Listing:
    rows = []
    for group in groups:
        pairs = [paired(group.by_seed(metric), reference.by_seed(metric)) for metric in metrics]
        if group is not reference:
            rows.append((group.label, *(_signed(*pair) for pair in pairs)))
    columns = ("cell", *metrics)
    return Listing(f"Difference to {reference.label}", columns, tuple(rows), _numeric(columns), note=PAIRED)


def _costs(groups: Sequence[Group]) -> Listing:
    stages = list(dict.fromkeys(stage for group in groups for row in group.rows for stage in row.cpu_seconds))

    def mean(values: Iterable[float | None]) -> str:
        seconds = list(values)
        numbers = [value for value in seconds if value is not None]
        return f"{statistics.fmean(numbers):.0f}" if numbers and len(numbers) == len(seconds) else "—"

    rows = []
    for group in groups:
        parts = [mean(row.cpu_seconds[stage] for row in group.rows if stage in row.cpu_seconds) for stage in stages]
        rows.append((group.label, mean(row.cost for row in group.rows), *parts))
    columns = ("cell", "all", *stages)
    note = "User and system time of the processes of each stage, mean over seeds. A shared run counts in each cell."
    return Listing("CPU-seconds", columns, tuple(rows), _numeric(columns), note=note)


def _signed(mean: float, error: float | None) -> str:
    return "—" if math.isnan(mean) else f"{mean:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def _numeric(columns: Sequence[str]) -> frozenset[int]:
    return frozenset(range(1, len(columns)))


def _evaluations(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.evaluation for row in rows))
