"""``flowopd report``: a run's page again, or several runs side by side. Nothing heavy is imported here."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs of any stage, evaluations among them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE|DIR", help="Where to write; the run itself, or a fresh folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write the report of a run again, or compare several: the table of their evaluations, its numbers as CSV, JSON,
    Markdown and LaTeX, the change against the base, pictures at equal prompts and seeds, curves. Evaluations of the
    named runs that lie beside them are found.

    \b
    Example:
      flowopd report runs/student
      flowopd report runs/t-geneval runs/t-ocr runs/student --out runs/comparison
    """
    from flowopd_cli.reports import report as reports

    if len(runs) == 1:
        page = reports.of_run(runs[0], out)
        told = {"report": str(page)}
    else:
        page, entries, files = reports.of_runs(runs, out)
        models = {entry.name: entry.results for entry in entries}
        told = {"report": str(page), "files": [str(file) for file in files], "models": models}
    print(jsonlib.dumps(told) if json else reports.shown(page))
