"""``flowopd study``: a grid of recipe fields and seeds over a chain of stages."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json
from flowopd_cli.errors import FAULTY

FILE = "A YAML file, or a shipped study: 'flowopd recipes ls' lists them."
File = Annotated[str, typer.Argument(metavar="FILE", help=FILE, autocompletion=completion.studies)]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder of the results; a study in it goes on.")]
STORE = "The folder of the runs, which several studies may share; DIR/nodes by default."
SHARD = "Make the I-th of N parts of the cells; the others run elsewhere with the same DIR."
DRY_RUN = "Check all recipes, print the runs and which are done, and stop."
CODE = "Import and run code that the recipes name as module:attr."


def study(
    file: File,
    out: Out,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help=STORE)] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Runs at the same time, each a process.")] = 1,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help=SHARD)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    allow_code: Annotated[bool, typer.Option("--allow-code", help=CODE)] = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")] = False,
) -> None:
    """Run a chain of stages for every combination of axis values and seeds, and compare their evaluations: a table with
    paired differences, plots, CSV and JSON. Runs that combinations have in common are made once. To go on after an
    interruption or a change of FILE, repeat the command: finished runs are kept. Exits with 3 if a run failed.

    \b
    Example:
      flowopd study extrapolation --out studies/extrapolation --dry-run
      flowopd study mine.yaml --out studies/mine --jobs 2
    """
    from flowopd_cli.cli.console import Console
    from flowopd_cli.cli.study.pool import failure
    from flowopd_cli.cli.study.study import Study
    from flowopd_cli.system.text import columns

    console = Console(quiet=quiet)
    plan = Study.load(file, out, store)
    cells = plan.shard(shard)
    for remark in plan.check(allow_code=allow_code):
        console.note(f"note: {remark}")
    if dry_run:
        rows = plan.standing(cells)
        text = columns([("RUN", "WHAT", "STATUS"), *(tuple(row.values()) for row in rows)]) if rows else ""
        console.result(jsonlib.dumps({"runs": rows, "cells": len(cells)}) if json else text)
        done = sum(row["status"] == "done" for row in rows)
        console.note(f"{len(rows)} runs for {len(cells)} cells, {done} of them done")
        return
    again = f"flowopd {shlex.join(sys.argv[1:])}"
    result = plan.run(cells, jobs, console, again=again, allow_code=allow_code)
    console.result(jsonlib.dumps(result) if json else result["report"])
    if result["faults"]:
        typer.echo(failure(result["faults"], plan.store), err=True)
        raise typer.Exit(FAULTY)
