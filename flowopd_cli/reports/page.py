"""A report page: a record of its parts, and one template that renders them."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from flowopd_cli import __version__
from flowopd_cli.errors import one_line, printable
from flowopd_cli.reports.charts import Chart
from flowopd_cli.reports.pictures import Grid
from flowopd_cli.reports.table import Table
from flowopd_cli.runs.layout import RunPaths
from flowopd_cli.runs.manifest import Manifest
from flowopd_cli.system.files import is_file
from flowopd_cli.system.text import duration

MARK = "flowopd report"
TYPES = {"csv": "text/csv", "json": "application/json", "md": "text/markdown", "tex": "application/x-tex"}


@dataclass(frozen=True)
class Link:
    """A text, and the relative address of another report, empty where there is none."""

    text: str
    href: str = ""


@dataclass(frozen=True)
class Listing:
    """A plain table; ``figures`` are its columns of numbers, ``wrapped`` those of long texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Link | str, ...], ...]
    figures: frozenset[int] = frozenset()
    wrapped: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The parts of a report in their order; empty ones are left out."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    verdict: str = ""
    table_note: str = ""
    downloads: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[Chart] = ()
    changes_note: str = ""
    charts: Sequence[Chart] = ()
    chart_note: str = ""
    grids: Sequence[Grid] = ()
    listings: Sequence[Listing] = ()
    recipe: str = ""


def render(page: Page) -> str:
    """The page as one HTML file without scripts and network requests; every text is escaped."""
    from jinja2 import Environment

    template = (files("flowopd_cli.reports") / "report.html.j2").read_text(encoding="utf-8")
    uris = {
        name: f"data:{TYPES[name.rpartition('.')[2]]};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
        for name, text in page.downloads.items()
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"brief": one_line, "printable": printable}
    html = environment.from_string(template).render(page=page, uris=uris, mark=MARK, version=__version__)
    return html.encode("utf-8", "backslashreplace").decode("utf-8")  # the name of a file may hold other bytes


def link(text: str, run: Path, page: Path) -> Link:
    """A link from the page at ``page`` to the report of ``run``, or the text alone."""
    with suppress(OSError, ValueError):
        report = RunPaths(run).report_file
        if is_file(report) and report.resolve() != page.resolve():
            relative = os.path.relpath(report.resolve(), page.resolve().parent)
            return Link(text, quote(os.fsencode(Path(relative).as_posix()), safe="/"))
    return Link(text)


def elapsed(manifest: Manifest) -> str | None:
    """The time from a run's start to its end, including pauses before a resume; ``None`` if it has not ended."""
    if not manifest.finished:
        return None
    start, end = map(datetime.fromisoformat, (manifest.created, manifest.finished))
    return duration((end - start).total_seconds())
