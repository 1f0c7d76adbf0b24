"""The comparison of several models: table, change against the base, pictures at equal prompts, curves, runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import FlowOPDError
from flowopd_cli.reports import changes, curves
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.page import Link, Listing, Page, elapsed, link
from flowopd_cli.reports.pictures import BUDGET, Grid, evaluated_prompts, grid, read_all
from flowopd_cli.reports.table import changes_against_base, files, scales, table
from flowopd_cli.runs.evaluations import protocol
from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.redact import public_reference


@dataclass(frozen=True)
class Comparison:
    """The models of a comparison, and the head of its page."""

    entries: Sequence[Entry]
    title: str = "Comparison"
    lead: str = ""


def page(comparison: Comparison, target: Path) -> Page:
    """The comparison as a page at ``target``.

    Raises:
        ArtifactError: metrics or results are damaged.
    """
    entries = comparison.entries
    evaluated = sum(entry.evaluation is not None for entry in entries)
    rows = {entry.name: entry.run.rows() for entry in entries if entry.run}
    return Page(
        title=comparison.title,
        lead=comparison.lead or f"{len(entries)} models, {evaluated} of them evaluated.",
        table=table(entries),
        table_note=_note(entries),
        downloads=files(entries),
        changes_note=changes.NOTE,
        changes=changes.panels(changes_against_base(entries), scales(entries)),
        charts=curves.of_runs({name: logged for name, logged in rows.items() if logged}),
        chart_note="" if evaluated else "None of these models has an evaluation: flowopd eval --adapter RUN makes one.",
        grids=_grids(entries),
        listings=[_runs(entries, target)] if entries else [],
    )


def _note(entries: Sequence[Entry]) -> str:
    comparable = [entry.evaluation for entry in entries if entry.evaluation and entry.comparable]
    if not comparable:
        return ""
    note = f"Mean ± standard error over prompts; best in bold. Protocol: {protocol(comparable[0])}."
    missing = [entry.name for entry in entries if not entry.evaluation]
    note += f" Not evaluated: {', '.join(missing)}." if missing else ""
    for entry in entries:
        if entry.evaluation and not entry.comparable:
            suites = dict.fromkeys(s for other in comparable for s in entry.evaluation.judged_otherwise(other))
            note += f" † {entry.name} was evaluated otherwise and does not compare: {protocol(entry.evaluation)}"
            note += f"; another judge of {', '.join(suites)}." if suites else "."
    return note


def _grids(entries: Sequence[Entry]) -> list[Grid]:
    """A grid for each set of prompts and seeds."""
    groups: dict[tuple[Any, tuple[str, ...]], list[tuple[str, Path]]] = {}
    for entry in entries:
        if entry.evaluation is not None and (file := entry.evaluation.run.image_file("eval")).is_file():
            settings = entry.evaluation.protocol
            seeds = tuple(settings[name] for name in ("seed", "steps", "guidance", "resolution"))
            prompts = tuple(evaluated_prompts(entry.evaluation.run))
            groups.setdefault((seeds, prompts), []).append((entry.name, file))
    caption = "A column has the same prompt and the same starting noise in every row."
    grids = [
        grid(
            "Pictures at equal prompts and seeds",
            caption,
            prompts,
            read_all(rows, len(prompts), BUDGET // len(groups)),
        )
        for (_, prompts), rows in groups.items()
    ]
    return [one for one in grids if one is not None]


def _runs(entries: Sequence[Entry], target: Path) -> Listing:
    """Each model's run: its report, stage, status, duration, parents and evaluation."""
    rows = []
    for entry in entries:
        name = link(entry.name, entry.run.path, target) if entry.run else Link(entry.name)
        evaluation = entry.evaluation.run.path if entry.evaluation else None
        facts = _facts(entry.run) if entry.run else ("—", "—", "—", "—")
        rows.append((name, *facts, link(evaluation.name, evaluation, target) if evaluation else "—"))
    columns = ("model", "stage", "status", "took", "from", "evaluation")
    return Listing("Runs", columns, tuple(rows), wrapped=frozenset({4}))


def _facts(run: RunDir) -> tuple[str, str, str, str]:
    manifest = run.manifest()
    status = manifest.status
    with suppress(FlowOPDError):
        status = status_now(run.path)
    parents = (f"{parent.role.replace('_', ' ')}: {public_reference(parent.ref)}" for parent in manifest.parents)
    return manifest.stage, status, elapsed(manifest) or "—", ", ".join(parents) or "—"
