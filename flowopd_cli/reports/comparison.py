"""The comparison of several models: table, change against the base, pictures at equal prompts, curves, runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.errors import FlowOPDError
from flowopd_cli.reports import changes as balance
from flowopd_cli.reports import curves
from flowopd_cli.reports import pictures as strips
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.page import Link, Listing, Page, link, shortened, span
from flowopd_cli.reports.table import changes, files, scales, table
from flowopd_cli.runs.evaluations import protocol
from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.text import duration

TITLE = "Comparison"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and what the page says above it."""

    entries: Sequence[Entry]
    title: str = TITLE
    lead: str = ""


def page(asked: Comparison, target: Path) -> Page:
    """The comparison as a page at ``target``.

    Raises:
        ArtifactError: metrics or results are damaged.
    """
    entries = asked.entries
    shown = table(entries)
    scored = [entry for entry in entries if entry.evaluation]
    rows = {entry.name: entry.run.rows() for entry in entries if entry.run}
    lead = asked.lead or f"{len(entries)} models, {len(scored)} of them evaluated."
    return Page(
        title=asked.title,
        lead=lead,
        table=shown,
        table_note=_note(entries),
        downloads=files(entries),
        balance_note=balance.NOTE,
        balance=balance.panels(changes(entries), scales(entries)),
        charts=curves.of_runs({name: own for name, own in rows.items() if own}),
        chart_note="" if scored else "None of these models has an evaluation: flowopd eval --adapter RUN makes one.",
        grids=_grids(scored),
        listings=[part for part in (_runs(entries, target),) if part],
    )


def _note(entries: Sequence[Entry]) -> str:
    found = [entry.evaluation for entry in entries if entry.evaluation and entry.alike]
    if not found:
        return ""
    told = f"Mean ± standard error over prompts; best in bold. Protocol: {protocol(found[0])}."
    missing = [entry.name for entry in entries if not entry.evaluation]
    told += f" Not evaluated: {', '.join(missing)}." if missing else ""
    for entry in entries:
        if entry.evaluation and not entry.alike:
            others = [name for usual in found for name in entry.evaluation.judged_otherwise(usual)]
            judged = ", ".join(dict.fromkeys(others))
            how = protocol(entry.evaluation) + (f"; another judge of {judged}" if judged else "")
            told += f" † {entry.name} was evaluated otherwise and does not compare: {how}."
    return told


def _grids(scored: Sequence[Entry]) -> list[strips.Grid]:
    """A grid for each set of prompts and seeds that several models were drawn with."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in scored:
        if entry.evaluation is not None and entry.evaluation.run.image_file("eval").is_file():
            made = entry.evaluation.protocol
            key = tuple(made[name] for name in ("seed", "steps", "guidance", "resolution"))
            groups.setdefault((*key, *strips.shown_prompts(entry.evaluation.run)), []).append(entry)
    found = []
    for (_, _, _, _, *prompts), group in groups.items():
        asked = [strips.Strip(e.name, e.evaluation.run.image_file("eval")) for e in group if e.evaluation]
        drawn = strips.within(asked, len(prompts), strips.BUDGET // len(groups))
        if drawn:
            caption = "A column has the same prompt and the same starting noise in every row."
            found.append(strips.grid("Pictures at equal prompts and seeds", caption, prompts, drawn))
    return found


def _runs(entries: Sequence[Entry], target: Path) -> Listing | None:
    """Every model's run: its report, its stage, how it ended, what it took, what it was made from, its evaluation."""
    rows = []
    for entry in entries:
        made = _made(entry.run) if entry.run else ("—", "—", "—", "—")
        name = link(entry.name, entry.run.path, target) if entry.run else Link(entry.name)
        scored = entry.evaluation.run.path if entry.evaluation else None
        rows.append((name, *made, link(scored.name, scored, target) if scored else "—"))
    columns = ("model", "stage", "status", "took", "from", "evaluation")
    return Listing("Runs", columns, tuple(rows), wrapped=frozenset({4})) if rows else None


def _made(run: RunDir) -> tuple[str, str, str, str]:
    manifest = run.manifest()
    elapsed, status = span(manifest), manifest.status
    with suppress(FlowOPDError):
        status = status_now(run.path)
    parents = ", ".join(f"{parent.role.replace('_', ' ')}: {shortened(parent.ref)}" for parent in manifest.parents)
    return manifest.stage, status, duration(elapsed) if elapsed is not None else "—", parents or "—"
