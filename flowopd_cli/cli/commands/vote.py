"""``flowopd vote``: people compare the pictures of two models."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json
from flowopd_cli.errors import Interrupted, printable

_RUNS = "Evaluations, a folder of several, or runs with evaluations beside them."
Runs = Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help=_RUNS, autocompletion=completion.runs)]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The file of votes; votes.jsonl beside the first run by default.")
]
Name = Annotated[str, typer.Option(metavar="NAME", help="Who votes; every voter is shown every pair.")]
Seed = Annotated[int, typer.Option(metavar="N", help="The seed of the order and of the sides.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port of the page; a free one by default.")]


def vote(runs: Runs, out: Out = None, name: Name = "", seed: Seed = 0, port: Port = 0, json: Json = False) -> None:
    """Show pairs of pictures of the same prompt and seed on a local page, and store which is better. The models are
    hidden and the sides shuffled. A pair with a vote is not shown again; flowopd report has the ratings.

    \b
    Example:
      flowopd vote runs/eval-init runs/eval-student --name ann
      flowopd report runs/eval-init runs/eval-student
    """
    from flowopd_cli.cli.console import Console
    from flowopd_cli.cli.several import single_runs
    from flowopd_cli.reports.vote_page import Server, Session
    from flowopd_cli.reports.votes import VOTES, pairs

    runs = single_runs(runs)
    file = out or runs[0].resolve().parent / VOTES
    console, session = Console(), Session(pairs(runs, seed, name), file, name)
    with Server(session, port) as server:
        console.note(f"{session.progress}; the page: {server.address}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.note(f"{session.progress}, in {printable(str(file))}")
            raise typer.Exit(Interrupted("").exit_code) from None
    result = {"votes": str(file), "given": session.vote_count, "pairs": len(session.pairs)}
    print(jsonlib.dumps(result) if json else printable(str(file)))
