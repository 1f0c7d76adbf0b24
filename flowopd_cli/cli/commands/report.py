"""``flowopd report``: the page of a run, or of several side by side. Nothing heavy is imported here."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs of any stage, evaluations included.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE|DIR", help="Where to write, if not into the run or a new folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Write the report of a run again, or compare several: the table of their evaluations, its numbers as CSV, JSON,
    Markdown and LaTeX, the change against the base, pictures at equal prompts and seeds, curves. Evaluations of these
    runs are also found beside them.

    \b
    Example:
      flowopd report runs/student
      flowopd report runs/t-geneval runs/t-ocr runs/student --out runs/comparison
    """
    from flowopd_cli.errors import printable
    from flowopd_cli.reports.report import of_run, of_runs

    if len(runs) == 1:
        page = of_run(runs[0], out)
        result = {"report": str(page)}
    else:
        page, entries, files = of_runs(runs, out)
        models = {entry.name: entry.results for entry in entries}
        result = {"report": str(page), "files": [str(file) for file in files], "models": models}
    print(jsonlib.dumps(result) if json else printable(str(page)))
