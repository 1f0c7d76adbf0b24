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
from flowopd_cli.reports.entries import BASE, Entry
from flowopd_cli.runs.evaluations import PROTOCOL
from flowopd_cli.system.files import plain

AVERAGE = "average"
UNBOUNDED = ("imagereward",)  # how suites end whose means may lie between 0 and 1 by chance
NUMBERS = ("numbers.csv", "numbers.json", "table.md", "table.tex")
_FORMULA = {"=", "+", "-", "@"}
_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_TEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


@dataclass(frozen=True)
class Cell:
    """A figure with its standard error, and whether it is the best of its column."""

    mean: float
    stderr: float | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """Three decimals."""
        return f"{self.mean:.3f}"

    @property
    def error(self) -> str:
        """The standard error behind its sign, empty where it is not known."""
        return "" if self.stderr is None else f"± {self.stderr:.3f}"


@dataclass(frozen=True)
class Table:
    """Models as rows, suites as columns; ``near`` are suites whose scorer is not that of papers, ``note`` says what
    the average is, or why there is none."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    near: frozenset[str] = frozenset()
    apart: tuple[str, ...] = ()
    note: str = ""


def suites_of(entries: Sequence[Entry]) -> list[str]:
    """Every suite that a model was scored on, in the order in which they appear; one named ``average`` is the last."""
    return sorted(dict.fromkeys(suite for entry in entries for suite in entry.results), key=AVERAGE.__eq__)


def on_unit_scale(entries: Sequence[Entry], suite: str) -> bool:
    """Whether every mean of a suite lies between 0 and 1, and not by chance."""
    return not suite.endswith(UNBOUNDED) and all(
        0 <= entry.results[suite]["mean"] <= 1 for entry in entries if suite in entry.results
    )


def table(entries: Sequence[Entry]) -> Table | None:
    """The table, best of each column marked among those that compare; ``None`` when nothing was evaluated."""
    suites = suites_of(entries)
    if not suites:
        return None
    averaged, note = _averaged(entries, suites)
    means = {entry.name: _means(entry.results, suites, averaged) for entry in entries}
    fair = [means[entry.name] for entry in entries if entry.alike]
    columns = [*suites, AVERAGE] if averaged else suites
    best = {name: max((row[name] for row in fair if name in row), default=math.inf) for name in columns}
    rows = []
    for entry in entries:
        own = means[entry.name]
        cells = tuple(
            Cell(own[name], _error(entry, name), entry.alike and own[name] == best[name] and len(fair) > 1)
            if name in own
            else None
            for name in columns
        )
        rows.append((entry.name + ("" if entry.alike else " †"), cells))
    near = {s for entry in entries for s, figures in entry.results.items() if not figures["exact"]}
    apart = tuple(entry.name for entry in entries if not entry.alike)
    return Table(tuple(columns), tuple(rows), frozenset(near), apart, note)


def _averaged(entries: Sequence[Entry], suites: Sequence[str]) -> tuple[bool, str]:
    """Whether the suites' own average means something, and what is to be said of it."""
    if len(suites) < 2:
        return False, ""
    if AVERAGE in suites:
        return False, f"{AVERAGE}: as the suite of that name has it, each of its parts divided by its scale."
    whole = [suite for suite in suites if any(other.startswith(f"{suite}-") for other in suites)]
    if whole:
        return False, f"No average: {', '.join(whole)} is one of other columns already."
    if not all(on_unit_scale(entries, suite) for suite in suites):
        return False, "No average: the suites are on different scales."
    return True, f"{AVERAGE}: the plain mean of the suites, of models that have all of them."


def _means(results: Mapping[str, Mapping[str, Any]], suites: Sequence[str], averaged: bool) -> dict[str, float]:
    """The mean of each suite and, if asked for and a model has all of them, their average."""
    found = {suite: float(results[suite]["mean"]) for suite in suites if suite in results}
    whole = averaged and len(found) == len(suites)
    return found | ({AVERAGE: math.fsum(found.values()) / len(found)} if whole else {})


def _error(entry: Entry, name: str) -> float | None:
    return entry.results[name]["stderr"] if name in entry.results else None


def scales(entries: Sequence[Entry]) -> list[list[str]]:
    """The suites that may share an axis: those between 0 and 1, then each other by itself; no average is among them."""
    suites = [suite for suite in suites_of(entries) if suite != AVERAGE]
    unit = [suite for suite in suites if on_unit_scale(entries, suite)]
    return [group for group in (unit, *([suite] for suite in suites if suite not in unit)) if group]


def changes(entries: Sequence[Entry]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Of every model that compares with the base the change of each suite, with its standard error."""
    base = next((entry for entry in entries if entry.name == BASE and entry.alike), None)
    if base is None:
        return {}
    return {
        entry.name: {
            suite: (figures["mean"] - base.results[suite]["mean"], _both(figures, base.results[suite]))
            for suite, figures in entry.results.items()
            if suite in base.results
        }
        for entry in entries
        if entry is not base and entry.alike and entry.results
    }


def _both(one: Mapping[str, Any], two: Mapping[str, Any]) -> float | None:
    errors = one["stderr"], two["stderr"]
    return None if None in errors else math.hypot(*errors)


def numbers(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each model and suite."""
    return [
        {
            "model": printable(entry.name),
            "suite": printable(suite),
            "mean": figures["mean"],
            "stderr": figures["stderr"],
            "n": figures["n"],
            "exact": figures["exact"],
            "version": printable(entry.evaluation.versions[suite]),
            "comparable": entry.alike,
            **{key: entry.evaluation.protocol[key] for key in PROTOCOL},
        }
        for entry in entries
        if entry.evaluation
        for suite, figures in entry.results.items()
    ]


def files(entries: Sequence[Entry]) -> dict[str, str]:
    """What can be downloaded, by file name; without an evaluation nothing."""
    shown, rows = table(entries), numbers(entries)
    if shown is None:
        return {}
    texts = as_csv(rows), json.dumps(plain(rows), indent=1) + "\n", as_markdown(shown), as_latex(shown)
    return dict(zip(NUMBERS, texts, strict=True))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Comma-separated values under a head; a text that a spreadsheet would compute gets an apostrophe."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        texts = {key: f"'{v}" for key, v in row.items() if isinstance(v, str) and v[:1] in _FORMULA}
        writer.writerow({**row, **texts})
    return buffer.getvalue()


def as_markdown(shown: Table) -> str:
    """A table in GitHub's Markdown, best in bold."""
    head = ["model", *shown.columns]
    lines = [f"| {' | '.join(map(_markdown, head))} |", f"|---|{'---:|' * len(shown.columns)}"]
    for name, cells in shown.rows:
        texts = ["—" if c is None else f"{f'**{c.text}**' if c.best else c.text} {c.error}".strip() for c in cells]
        lines.append(f"| {_markdown(name)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"[<>|`*\[\]\\&]", lambda found: f"&#{ord(found[0])};", printable(text))


def as_latex(shown: Table) -> str:
    """A ``tabular`` for the package booktabs, best in bold."""
    lines = [f"\\begin{{tabular}}{{l{'r' * len(shown.columns)}}}", "\\toprule"]
    lines += [f"model & {' & '.join(map(_latex, shown.columns))} \\\\", "\\midrule"]
    for name, cells in shown.rows:
        lines.append(f"{_latex(name)} & {' & '.join(map(_latex_cell, cells))} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    error = "" if cell.stderr is None else f" {{\\scriptsize $\\pm$ {cell.stderr:.3f}}}"
    return (f"\\textbf{{{cell.text}}}" if cell.best else cell.text) + error


def _latex(text: str) -> str:
    return "".join("$\\dagger$" if c == "†" else _TEX.get(c, c) for c in printable(text))
