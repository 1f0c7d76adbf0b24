"""The page itself: a record of its parts, written by one template in which every text is escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
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
from flowopd_cli.system.paths import is_file

MARK = "flowopd report"
KINDS = {"csv": "text/csv", "json": "application/json", "md": "text/markdown", "tex": "application/x-tex"}


@dataclass(frozen=True)
class Link:
    """A text, and a page of ours that it leads to, relative to this one; empty where there is none."""

    text: str
    href: str = ""


@dataclass(frozen=True)
class Listing:
    """A plain table: a heading, its columns, rows of texts and links; ``figures`` are the columns of
    numbers, ``wrapped`` those of long texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Link | str, ...], ...]
    figures: frozenset[int] = frozenset()
    wrapped: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Page:
    """All that a report shows, in the order in which it stands there; what is empty is left out."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    table_note: str = ""
    downloads: Mapping[str, str] = field(default_factory=dict)
    balance: Sequence[Chart] = ()
    balance_note: str = ""
    charts: Sequence[Chart] = ()
    chart_note: str = ""
    grids: Sequence[Grid] = ()
    listings: Sequence[Listing] = ()
    recipe: str = ""


def render(page: Page) -> str:
    """The page as HTML: one file that asks the network for nothing and runs no script."""
    from jinja2 import Environment

    template = (files("flowopd_cli.reports") / "report.html.j2").read_text(encoding="utf-8")
    uris = {name: _uri(name, text) for name, text in page.downloads.items()}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"brief": one_line, "printable": printable}
    made = environment.from_string(template).render(page=page, uris=uris, mark=MARK, version=__version__)
    return made.encode("utf-8", "backslashreplace").decode("utf-8")  # a name of a file may hold what UTF-8 cannot


def _uri(name: str, text: str) -> str:
    kind = KINDS[name.rpartition(".")[2]]
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def link(text: str, target: Path, page: Path) -> Link:
    """A link from the page at ``page`` to the report of the run at ``target``; no link where there is none."""
    try:
        report = RunPaths(target).report_file
        if is_file(report) and report.resolve() != page.resolve():
            relative = os.path.relpath(report.resolve(), page.resolve().parent)
            return Link(text, quote(os.fsencode(Path(relative).as_posix()), safe="/"))
    except (OSError, ValueError):
        pass
    return Link(text)


def shortened(ref: str) -> str:
    """An adapter's reference as a reader knows it: one of the Hub as it is, else its last part."""
    return ref if ref.startswith("hub:") else Path(ref).name or ref


def span(manifest: Manifest) -> float | None:
    """Seconds between a run's birth and its end; of a resumed run that includes the time in between."""
    if not manifest.finished:
        return None
    return (datetime.fromisoformat(manifest.finished) - datetime.fromisoformat(manifest.created)).total_seconds()
