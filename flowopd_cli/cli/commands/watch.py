"""``flowopd watch``: follow a run of another process."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from typing import Annotated

import typer

from flowopd_cli.cli.options import Json, Run
from flowopd_cli.errors import FAULTY, Interrupted, printable

CODES = {"done": 0, "running": 0, "waiting": 2, "interrupted": FAULTY, "failed": FAULTY}
Once = Annotated[bool, typer.Option("--once", help="Show one view and exit; default if stderr is not a terminal.")]
Every = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Time between two views.")]


def watch(run: Run, once: Once = False, every: Every = 1.0, json: Json = False) -> None:
    """Follow a run of any process until it ends. Shows curves, remaining time, the latest sample pictures and warnings
    on stderr. Ctrl-C ends the view, not the run. Waits for a run that does not exist yet.

    Exits with 0 if the run is done (with --once also while it runs), with 3 if it failed or was interrupted.

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
            show(view := look(run))
            while not once and not view.ended:
                time.sleep(every)
                show(view := look(run))
    except KeyboardInterrupt:
        console.note(f"stopped watching; the run continues: {printable(str(run))}")
        raise typer.Exit(Interrupted("").exit_code) from None
    if once and view.status == WAITING:
        console.note(f"there is no run at {printable(str(run))} yet")
    if json:
        print(jsonlib.dumps(view.as_json()))
    raise typer.Exit(CODES[view.status])
