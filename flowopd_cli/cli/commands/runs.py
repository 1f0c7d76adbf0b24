"""``flowopd runs``: what lies in a folder of runs, and whether a run is still what it says. No torch here."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.errors import FAULTY

HELP = """List runs, say how they stand, and check that one is whole.

\b
Example:
  flowopd runs ls
  flowopd runs status runs/student
"""
app = typer.Typer(help=HELP, no_args_is_help=True)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("ls")
def ls(
    root: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("runs"), json: Json = False
) -> None:
    """List the runs below a folder, oldest first: stage, how each ended, when, and its last figures.

    \b
    Example:
      flowopd runs ls
      flowopd runs ls --json | jq -r '.[] | select(.status == "interrupted").run'
    """
    from flowopd_cli.runs.inspect import listing
    from flowopd_cli.system.text import columns

    rows = listing(root)
    if json:
        print(jsonlib.dumps(rows))
        return
    cells = [(r["run"], r["stage"], r["status"], r["created"], _brief(r["figures"])) for r in rows]
    print(columns([("RUN", "STAGE", "STATUS", "CREATED", "FIGURES"), *cells]))


@app.command("status")
def status(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories.", autocompletion=completion.runs)
    ],
) -> None:
    """Print how each run stands, a word a line: done, running, interrupted, failed; absent where there is none, unbegun
    where it was killed before it had a recipe to go on with (start it again with --force).

    \b
    Example:
      flowopd runs status runs/student
    """
    from flowopd_cli.runs.inspect import standing

    for run in runs:
        print(standing(run))


@app.command("verify")
def verify(run: Run, json: Json = False) -> None:
    """Check a run against its manifest: files, checkpoints, the adapters it was made from. Exits with 3 on a fault.

    \b
    Example:
      flowopd runs verify runs/student
    """
    from flowopd_cli.runs.inspect import verify as look
    from flowopd_cli.system.text import columns

    found = list(look(run))
    faults = [finding for finding in found if not finding.ok]
    if json:
        told = [{"kind": f.kind, "name": f.name, "ok": f.ok, "fault": f.fault} for f in found]
        print(jsonlib.dumps({"run": str(run), "ok": not faults, "findings": told}))
    elif faults:
        print(columns([(f.kind, f.name, f.fault) for f in faults]))
    else:
        print(run)
    if not json and not faults:
        typer.echo(f"{len(found)} things looked at, all as the manifest says", err=True)
    if faults:
        raise typer.Exit(FAULTY)


@app.command("replay")
def replay(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run that ended with numbers that are not finite.",
            autocompletion=completion.runs,
        ),
    ],
    device: Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="Instead of the recipe's.")] = None,
    json: Json = False,
) -> None:
    """Compute again what a training could not learn from, row by row: which are not finite. Exits with 3 if any is.

    \b
    Example:
      flowopd runs replay runs/t-ocr
    """
    import importlib

    from flowopd_cli.system.text import columns

    told = importlib.import_module("flowopd_cli.stages.training.replay").replay(run, device)
    if json:
        print(jsonlib.dumps(told))
    else:
        cells = [tuple(str(row[key]) for key in ("prompt", "sigma", "loss", "gradient")) for row in told["rows"]]
        print(columns([("PROMPT", "SIGMA", "LOSS", "GRADIENT"), *cells]))
        typer.echo(f"iteration {told['iteration']}: {told['bad']} of {len(cells)} rows are not finite", err=True)
    if told["bad"]:
        raise typer.Exit(FAULTY)


def _brief(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(figures.items())[:3])
