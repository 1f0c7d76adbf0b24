"""``flowopd report``: the page of a run, or the comparison of several."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd_cli.cli.options import Json
from flowopd_cli.errors import ArtifactError, RecipeError, printable

if TYPE_CHECKING:
    from flowopd_cli.reports.entries import Entry
    from flowopd_cli.reports.votes import Vote

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Runs, evaluations included; or the folder of several evaluations.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE|DIR", help="Where to write; the run or a new folder by default.")
]
Against = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The model of the paired differences; the base by default.")
]
Votes = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Votes of 'flowopd vote'; votes.jsonl beside the runs by default.")
]


def report(runs: Runs, out: Out = None, against: Against = None, votes: Votes = None, json: Json = False) -> None:
    """Rewrite the report of a run, or compare several: the table of their evaluations (also as CSV, JSON, Markdown and
    LaTeX), differences on the same prompts and seeds, pictures of these, curves, and people's votes. Evaluations of
    these runs, and votes, in the same folders are found automatically.

    \b
    Example:
      flowopd report runs/student
      flowopd report runs/t-geneval runs/t-ocr runs/student --out runs/comparison --against t-ocr
    """
    from flowopd_cli.cli.several import single_runs
    from flowopd_cli.reports.report import of_run, of_runs
    from flowopd_cli.reports.votes import read_votes, votes_beside
    from flowopd_cli.system.files import is_file

    result, runs = {}, single_runs(runs)
    if len(runs) == 1:
        if against is not None or votes is not None:
            raise RecipeError("--against and --votes compare several runs; name two or more")
        page = of_run(runs[0], out)
    else:
        if votes is not None and not is_file(votes):
            raise ArtifactError(f"--votes {votes}: no such file; flowopd vote makes one")
        ballots = votes_beside(runs) if votes is None else read_votes(votes)
        page, entries, files = of_runs(runs, out, against, ballots)
        result = {"files": [str(file) for file in files]}
        result |= _comparison(entries, against, ballots) if json else {}
    print(jsonlib.dumps({"report": str(page), **result}) if json else printable(str(page)))


def _comparison(entries: Sequence[Entry], against: str | None, ballots: Sequence[Vote]) -> dict[str, Any]:
    """The figures of a comparison for ``--json``."""
    from flowopd_cli.reports import comparison, paired
    from flowopd_cli.reports.votes import figures

    return {**comparison.numbers(entries, paired.reference(entries, against)), "votes": figures(entries, ballots)}
