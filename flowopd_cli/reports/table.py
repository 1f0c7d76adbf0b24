"""The table of a comparison as cells, and its numbers as CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.reports.entries import BASE, Entry, best_of_guidances
from flowopd_cli.reports.paired import between, counterpart
from flowopd_cli.runs.evaluations import AVERAGE, PROTOCOL, on_unit_scale
from flowopd_cli.system.json_files import plain

NUMBERS = ("numbers.csv", "numbers.json", "table.md", "table.tex")
_FORMULA = ("=", "+", "-", "@")
_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "†": r"$\dagger$"}
_TEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


@dataclass(frozen=True)
class Cell:
    """A mean with its standard error, whether it is the best of its column, and the decimals that are shown."""

    mean: float
    stderr: float | None = None
    best: bool = False
    decimals: int = 3

    @property
    def text(self) -> str:
        """The mean."""
        return f"{self.mean:,.{self.decimals}f}"

    @property
    def error(self) -> str:
        """``± `` and the standard error, empty where it is unknown."""
        return "" if self.stderr is None else f"± {self.stderr:.3f}"


@dataclass(frozen=True)
class Table:
    """Models, or what ``head`` calls them, as rows, suites as columns.

    ``approximate`` are suites whose scorer differs from the papers'; ``note`` explains the average or its absence.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    approximate: frozenset[str] = frozenset()
    note: str = ""
    head: str = "model"


def suites_of(entries: Sequence[Entry]) -> list[str]:
    """Every suite of the evaluations in order of appearance, ``average`` last."""
    return sorted(dict.fromkeys(suite for entry in entries for suite in entry.results), key=AVERAGE.__eq__)


def scales(entries: Sequence[Entry]) -> list[list[str]]:
    """The suites that may share an axis: those between 0 and 1, then each other one; averages are left out."""
    suites = [suite for suite in suites_of(entries) if suite != AVERAGE]
    unit = [suite for suite in suites if _on_unit_scale(entries, suite)]
    return [group for group in (unit, *([suite] for suite in suites if suite not in unit)) if group]


def _on_unit_scale(entries: Sequence[Entry], suite: str) -> bool:
    means = [entry.results[suite]["mean"] for entry in entries if suite in entry.results]
    return all(on_unit_scale(suite, mean) for mean in means)


def table(entries: Sequence[Entry]) -> Table | None:
    """The table with the best comparable figure of each column marked; ``None`` without any evaluation."""
    suites = suites_of(entries)
    if not suites:
        return None
    has_average, note = _average(entries, suites)
    columns = [*suites, AVERAGE] if has_average else suites
    means = [{suite: float(figures["mean"]) for suite, figures in entry.results.items()} for entry in entries]
    for row in means if has_average else ():
        row |= {AVERAGE: math.fsum(row.values()) / len(row)} if len(row) == len(suites) else {}
    comparable = [row for entry, row in zip(entries, means, strict=True) if entry.comparable]
    rivals = {name: [row[name] for row in comparable if name in row] for name in columns}

    def cell(entry: Entry, row: Mapping[str, float], name: str) -> Cell | None:
        if name not in row:
            return None
        is_best = entry.comparable and len(rivals[name]) > 1 and row[name] == max(rivals[name])
        return Cell(row[name], entry.results.get(name, {}).get("stderr"), is_best)

    best = best_of_guidances(entries)
    rows = tuple(
        (
            entry.label + (" (best)" if entry in best else "") + ("" if entry.comparable else " †"),
            tuple(cell(entry, row, name) for name in columns),
        )
        for entry, row in zip(entries, means, strict=True)
    )
    costs = list(dict.fromkeys(name for entry in entries for name in entry.costs))
    if costs:
        spent = [[Cell(e.costs[name], decimals=0) if name in e.costs else None for name in costs] for e in entries]
        rows = tuple((name, (*cells, *more)) for (name, cells), more in zip(rows, spent, strict=True))
    approximate = {s for entry in entries for s, figures in entry.results.items() if not figures["exact"]}
    return Table((*columns, *costs), rows, frozenset(approximate), note)


def _average(entries: Sequence[Entry], suites: Sequence[str]) -> tuple[bool, str]:
    if len(suites) < 2:
        return False, ""
    if AVERAGE in suites:
        return False, f"{AVERAGE}: as its suite defines it, each part divided by its scale."
    groups = [suite for suite in suites if any(other.startswith(f"{suite}-") for other in suites)]
    if groups:
        return False, f"No average: {', '.join(groups)} is the mean of other columns."
    if not all(_on_unit_scale(entries, suite) for suite in suites):
        return False, "No average: the suites are on different scales."
    return True, f"{AVERAGE}: the plain mean of the suites, of models that have all of them."


def best_note(entries: Sequence[Entry]) -> str:
    """Which guidance is the best of each model that has several."""
    best = best_of_guidances(entries)
    texts = [f"{entry.name} {entry.guidance:g}" for entry in best]
    if not texts:
        return ""
    split = best[0].evaluation.protocol["split"] if best[0].evaluation else ""
    caution = " Choose a guidance on validation prompts." if split == "test" else ""
    return f" Best guidance by the average on {split} prompts: {', '.join(texts)}.{caution}"


def changes_against_base(entries: Sequence[Entry]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """``{model: {suite: (change, standard error)}}`` of the models that compare with the base.

    The error is that of the paired difference where both evaluations have their rows.
    """
    comparable = [entry for entry in entries if entry.comparable and entry.results]
    return {
        entry.label: _changes(entry, base) for entry in comparable if (base := counterpart(entry, BASE, comparable))
    }


def _changes(entry: Entry, base: Entry) -> dict[str, tuple[float, float | None]]:
    pairs = between(entry.evaluation, base.evaluation) if entry.evaluation and base.evaluation else {}
    changes = {s: change(figures, base.results[s]) for s, figures in entry.results.items() if s in base.results}
    return changes | {suite: (pair.mean, pair.stderr) for suite, pair in pairs.items()}


def change(figures: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float | None]:
    """The difference of two means, and its standard error as if they were independent."""
    errors = figures["stderr"], reference["stderr"]
    return figures["mean"] - reference["mean"], None if None in errors else math.hypot(*errors)


def numbers(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each model and suite."""
    return [
        {
            "model": printable(entry.name),
            "suite": printable(suite),
            **{key: figures[key] for key in ("mean", "stderr", "n", "exact")},
            "version": printable(entry.evaluation.results[suite]["version"]),
            "comparable": entry.comparable,
            **{key: entry.evaluation.protocol[key] for key in PROTOCOL},
            "quantize": entry.quantize,
        }
        for entry in entries
        if entry.evaluation
        for suite, figures in entry.results.items()
    ]


def files(entries: Sequence[Entry]) -> dict[str, str]:
    """The files for download by name, none without an evaluation."""
    cells, rows = table(entries), numbers(entries)
    if cells is None:
        return {}
    texts = as_csv(rows), json.dumps(plain(rows), indent=1) + "\n", as_markdown(cells), as_latex(cells)
    return dict(zip(NUMBERS, texts, strict=True))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated values with a header; an apostrophe precedes a text that a spreadsheet would compute."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for k, v in row.items()})
    return buffer.getvalue()


def as_markdown(cells: Table) -> str:
    """A table in GitHub's Markdown, best in bold."""

    def name(text: str) -> str:
        return re.sub(r"[<>|`*\[\]\\&]", lambda match: f"&#{ord(match[0])};", printable(text))

    def text(cell: Cell | None) -> str:
        return "—" if cell is None else f"{f'**{cell.text}**' if cell.best else cell.text} {cell.error}".strip()

    rows = [(cells.head, *map(name, cells.columns)), *((name(row), *map(text, values)) for row, values in cells.rows)]
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], f"|---|{'---:|' * len(cells.columns)}\n", *lines[1:]])


def as_latex(cells: Table) -> str:
    """A ``tabular`` for the package booktabs, best in bold."""

    def name(text: str) -> str:
        return "".join(_TEX.get(c, c) for c in printable(text))

    def text(cell: Cell | None) -> str:
        if cell is None:
            return "--"
        error = "" if cell.stderr is None else f" {{\\scriptsize $\\pm$ {cell.stderr:.3f}}}"
        return (f"\\textbf{{{cell.text}}}" if cell.best else cell.text) + error

    rows = [(cells.head, *map(name, cells.columns)), *((name(row), *map(text, values)) for row, values in cells.rows)]
    lines = [f"{' & '.join(row)} \\\\" for row in rows]
    head = [f"\\begin{{tabular}}{{l{'r' * len(cells.columns)}}}", "\\toprule", lines[0], "\\midrule"]
    return "\n".join([*head, *lines[1:], "\\bottomrule", "\\end{tabular}\n"])
