"""The comparison of several models: table, change against the base, pictures at equal prompts, curves, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowopd_cli.reports import changes, curves, paired, pictures
from flowopd_cli.reports.entries import Entry, collect
from flowopd_cli.reports.page import Link, Listing, Page, elapsed, link
from flowopd_cli.reports.table import best_note, changes_against_base, files, scales, table
from flowopd_cli.runs.evaluations import protocol
from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.redact import public_name, public_reference


def page(
    entries: Sequence[Entry],
    target: Path,
    title: str = "Comparison",
    lead: str = "",
    listings: Sequence[Listing] = (),
    against: str = "",
) -> Page:
    """The comparison as a page at ``target``, with ``listings`` before that of the runs.

    ``against`` names the model of the paired differences; without one they are left out.

    Raises :class:`ArtifactError`: metrics or results are damaged.
    """
    evaluated = sum(entry.evaluation is not None for entry in entries)
    rows = {entry.name: entry.run.rows() for entry in entries if entry.run}
    return Page(
        title=title,
        lead=lead or f"{len(entries)} models, {evaluated} of them evaluated.",
        table=table(entries),
        table_note=_note(entries),
        downloads=files(entries),
        changes_note=changes.NOTE,
        changes=changes.panels(changes_against_base(entries), scales(entries)),
        charts=curves.of_runs({name: metrics for name, metrics in rows.items() if metrics}),
        chart_note="" if evaluated else "None of these models has an evaluation: flowopd eval --adapter RUN makes one.",
        grids=_grids(entries),
        listings=[
            *_differences("Paired differences", f"less {against}", paired.against(entries, against)),
            *_differences("Quantized base", "less full precision", paired.against_full_precision(entries)),
            *listings,
            _runs(entries, target),
        ],
    )


def compared(paths: Sequence[Path], against: str | None = None) -> tuple[dict[str, Any], list[Entry], str]:
    """The figures of a comparison for JSON, its models, and the name of that which ``against`` stands for.

    Raises :class:`ArtifactError`: as :func:`~.entries.collect` and :func:`~.paired.reference`.
    """
    models = collect(paths)
    reference = paired.reference(models, against)
    return numbers(models, reference), models, reference


def numbers(entries: Sequence[Entry], against: str) -> dict[str, Any]:
    """Means by model, and paired differences."""
    pairs = {"paired": paired.against(entries, against), "less_full_precision": paired.against_full_precision(entries)}
    plain = {
        title: {model: {suite: asdict(pair) for suite, pair in of.items()} for model, of in table.items()}
        for title, table in pairs.items()
    }
    return {"models": {entry.label: entry.results for entry in entries}, "against": against, **plain}


def show(progress: Progress, entries: Sequence[Entry], against: str) -> None:
    """Show the table of the models, and their paired differences; ``~`` marks suites that are not exact."""
    cells = table(entries)
    if cells is None:
        return
    columns = [f"~{name}" if name in cells.approximate else name for name in cells.columns]
    rows = [(name, *("—" if c is None else f"{c.text} {c.error}".strip() for c in row)) for name, row in cells.rows]
    progress.table("Results", (cells.head, *columns), rows)
    for listing in _differences("Paired differences", f"less {against}", paired.against(entries, against)):
        progress.table(f"{listing.title}. {listing.note}", listing.columns, listing.rows)


def _note(entries: Sequence[Entry]) -> str:
    comparable = [entry.evaluation for entry in entries if entry.evaluation and entry.comparable]
    if not comparable:
        return ""
    note = f"Mean ± standard error over prompts; best in bold. Protocol: {protocol(*comparable)}."
    note += best_note(entries)
    missing = [entry.name for entry in entries if not entry.evaluation]
    note += f" Not evaluated: {', '.join(missing)}." if missing else ""
    for entry in entries:
        if entry.evaluation and not entry.comparable:
            suites = dict.fromkeys(s for other in comparable for s in entry.evaluation.judged_otherwise(other))
            note += f" † {entry.label} was evaluated otherwise and does not compare: {protocol(entry.evaluation)}"
            note += f"; another judge of {', '.join(suites)}." if suites else "."
    return note


def _differences(title: str, head: str, differences: Mapping[str, Mapping[str, paired.Difference]]) -> list[Listing]:
    """Paired differences as a table, none where no model shares pictures with its reference."""
    suites = list(dict.fromkeys(suite for pairs in differences.values() for suite in pairs))
    rows = [(model, *(_paired(pairs.get(suite)) for suite in suites)) for model, pairs in differences.items() if pairs]
    columns = (head, *suites)
    numeric = frozenset(range(1, len(columns)))
    return [Listing(title, columns, tuple(rows), numeric, note=paired.NOTE)] if rows else []


def _paired(pair: paired.Difference | None) -> str:
    if pair is None:
        return "—"
    error = "" if pair.stderr is None else f" ± {pair.stderr:.3f}"
    return f"{pair.mean:+.3f}{error} ({pair.won:.0%} / {pair.lost:.0%})"


def _grids(entries: Sequence[Entry]) -> list[pictures.Grid]:
    groups: dict[tuple[Any, tuple[str, ...]], list[tuple[str, Path]]] = {}
    for entry in entries:
        if entry.evaluation is not None and (file := entry.evaluation.sheet).is_file():
            seeds = tuple(entry.evaluation.protocol[name] for name in ("seed", "steps", "guidance", "resolution"))
            prompts = tuple(pictures.evaluated_prompts(entry.evaluation.run))
            groups.setdefault((seeds, prompts), []).append((entry.label, file))
    title = "Pictures at equal prompts and seeds"
    caption = "A column has the same prompt and the same starting noise in every row."
    budget = pictures.BUDGET // max(1, len(groups))
    grids = [pictures.grid(title, caption, prompts, rows, budget) for (_, prompts), rows in groups.items()]
    return [grid for grid in grids if grid is not None]


def _runs(entries: Sequence[Entry], target: Path) -> Listing:
    rows = []
    for entry in entries:
        name = link(entry.label, entry.run.path, target) if entry.run else Link(entry.label)
        facts = _facts(entry.run) if entry.run else ("—",) * 4
        evaluation = entry.evaluation and entry.evaluation.run.path
        rows.append((name, *facts, link(evaluation.name, evaluation, target) if evaluation else "—"))
    columns = ("model", "stage", "status", "took", "from", "evaluation")
    return Listing("Runs", columns, tuple(rows), wrapped=frozenset({4}))


def _facts(run: RunDir) -> tuple[str, str, str, str]:
    manifest = run.manifest()
    parents = (
        f"{parent.role.replace('_', ' ')}: {public_reference(parent.ref)}"
        + (f" on {public_name(parent.base.ref)}" if parent.base else "")
        for parent in manifest.parents
    )
    return manifest.stage, status_now(run.path), elapsed(manifest) or "—", ", ".join(parents) or "—"
