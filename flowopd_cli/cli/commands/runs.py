"""``flowopd runs``: list runs, show their status, verify their files, replay a fault."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json, Run
from flowopd_cli.errors import FAULTY
from flowopd_cli.system.text import columns

HELP = """List runs, show their status, and verify their files.

\b
Example:
  flowopd runs ls
  flowopd runs status runs/student
"""
app = typer.Typer(help=HELP, no_args_is_help=True)
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", autocompletion=completion.runs)]
Root = Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to search.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="The device to use instead of the recipe's.")]


@app.command("ls")
def ls(root: Root = Path("runs"), json: Json = False) -> None:
    """List the runs below a folder, oldest first: stage, status, creation time, last metrics.

    \b
    Example:
      flowopd runs ls
      flowopd runs ls --json | jq -r '.[] | select(.status == "interrupted").run'
    """
    from flowopd_cli.runs.inspect import listing

    rows = listing(root)
    cells = [(r["run"], r["stage"], r["status"], r["created"], _brief(r["figures"])) for r in rows]
    print(jsonlib.dumps(rows) if json else columns([("RUN", "STAGE", "STATUS", "CREATED", "FIGURES"), *cells]))


@app.command("status")
def status(runs: Runs) -> None:
    """Print the status of each run, one word per line: done, running, interrupted, failed; absent if there is no run,
    unbegun if it was killed before it wrote its recipe (start it again with --force).

    \b
    Example:
      flowopd runs status runs/student
    """
    from flowopd_cli.runs.inspect import standing

    for run in runs:
        print(standing(run))


@app.command("verify")
def verify(run: Run, json: Json = False) -> None:
    """Check a run against its manifest: files, checkpoints, input adapters. Exits with 3 on a fault.

    \b
    Example:
      flowopd runs verify runs/student
    """
    from flowopd_cli.runs.inspect import verify as check

    findings = list(check(run))
    faults = [finding for finding in findings if not finding.ok]
    if json:
        rows = [{"kind": f.kind, "name": f.name, "ok": f.ok, "fault": f.fault} for f in findings]
        print(jsonlib.dumps({"run": str(run), "ok": not faults, "findings": rows}))
    elif faults:
        print(columns([(f.kind, f.name, f.fault) for f in faults]))
    else:
        print(run)
        typer.echo(f"{len(findings)} entries checked, all as in the manifest", err=True)
    if faults:
        raise typer.Exit(FAULTY)


@app.command("replay")
def replay(run: Run, device: Device = None, json: Json = False) -> None:
    """Recompute, row by row, the optimizer step whose non-finite numbers ended a training. Exits with 3 if a row is
    non-finite again.

    \b
    Example:
      flowopd runs replay runs/t-ocr
    """
    from flowopd_cli.stages.training.replay import replay as replay_fault

    result = replay_fault(run, device)
    if json:
        print(jsonlib.dumps(result))
    else:
        cells = [tuple(str(row[key]) for key in ("prompt", "sigma", "loss", "gradient")) for row in result["rows"]]
        print(columns([("PROMPT", "SIGMA", "LOSS", "GRADIENT"), *cells]))
        typer.echo(f"iteration {result['iteration']}: {result['bad']} of {len(cells)} rows are not finite", err=True)
    if result["bad"]:
        raise typer.Exit(FAULTY)


def _brief(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in list(figures.items())[:3])
