"""``flowopd watch``: follow a run of another process. No torch here."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.errors import FAULTY, Interrupted, printable

CODES = {"done": 0, "running": 0, "waiting": 2, "interrupted": FAULTY, "failed": FAULTY}
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)]
Once = Annotated[bool, typer.Option("--once", help="Show one view and exit; the default where stderr is no terminal.")]
Every = Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="Time between two views.")]
Json = Annotated[bool, typer.Option("--json", help="Print the last view as one JSON object.")]


def watch(run: Run, once: Once = False, every: Every = 1.0, json: Json = False) -> None:
    """Follow a run of any process until it ends: curves, time to go, last sample pictures, warnings, on stderr. Ctrl-C
    leaves the run alone. A run that does not exist yet is waited for.

    Exits with 0 when the run is done (with --once also while it runs), with 3 when it failed or was interrupted.

    \b
    Example:
      flowopd watch runs/student
      flowopd watch runs/student --once --json | jq .eta
    """
    from flowopd_cli.cli.console import Console
    from flowopd_cli.reports.watch import WAITING, look

    console = Console()
    once = once or not sys.stderr.isatty()
    try:
        with console.viewer(live=not once) as show:
            view = look(run)
            show(view)
            while not once and not view.ended:
                time.sleep(every)
                view = look(run)
                show(view)
    except KeyboardInterrupt:
        console.note(f"left alone: {printable(str(run))}")
        raise typer.Exit(Interrupted("").exit_code) from None
    if once and view.status == WAITING:
        console.note(f"there is no run at {printable(str(run))} yet")
    if json:
        print(jsonlib.dumps(view.as_json()))
    raise typer.Exit(CODES[view.status])
