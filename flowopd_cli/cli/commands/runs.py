"""``flowopd runs``: list runs, show their status, verify their files, replay a fault. No torch here."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.errors import FAULTY

HELP = """List runs, show their status, and verify their files.

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
    root: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to search.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs below a folder, oldest first: stage, status, creation time, last metrics.

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
    """Print the status of each run, one word a line: done, running, interrupted, failed; absent where there is no run,
    unbegun where it was killed before its recipe was written (start it again with --force).

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
    from flowopd_cli.system.text import columns

    findings = list(check(run))
    faults = [finding for finding in findings if not finding.ok]
    if json:
        rows = [{"kind": f.kind, "name": f.name, "ok": f.ok, "fault": f.fault} for f in findings]
        print(jsonlib.dumps({"run": str(run), "ok": not faults, "findings": rows}))
    elif faults:
        print(columns([(f.kind, f.name, f.fault) for f in faults]))
    else:
        print(run)
    if not json and not faults:
        typer.echo(f"{len(findings)} entries checked, all as the manifest says", err=True)
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
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="The device to use instead of the recipe's.")
    ] = None,
    json: Json = False,
) -> None:
    """Recompute the optimizer step that stopped a training, row by row. Exits with 3 if a row is not finite.

    \b
    Example:
      flowopd runs replay runs/t-ocr
    """
    from flowopd_cli.stages.training.replay import replay as replay_fault
    from flowopd_cli.system.text import columns

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
