"""``flowopd report``: the page of a run, or the comparison of several."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli.options import Json

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs of any stage, evaluations included.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE|DIR", help="Where to write; the run or a new folder by default.")
]


def report(runs: Runs, out: Out = None, json: Json = False) -> None:
    """Rewrite the report of a run, or compare several: the table of their evaluations (also as CSV, JSON, Markdown and
    LaTeX), the change from the base, pictures for the same prompts and seeds, and curves. Evaluations of these runs in
    the same folders are found automatically.

    \b
    Example:
      flowopd report runs/student
      flowopd report runs/t-geneval runs/t-ocr runs/student --out runs/comparison
    """
    from flowopd_cli.errors import printable
    from flowopd_cli.reports.report import of_run, of_runs

    result = {}
    if len(runs) == 1:
        page = of_run(runs[0], out)
    else:
        page, entries, files = of_runs(runs, out)
        models = {entry.label: entry.results for entry in entries}
        result = {"files": [str(file) for file in files], "models": models}
    print(jsonlib.dumps({"report": str(page), **result}) if json else printable(str(page)))
