"""Progress and tables on stderr, the result on stdout. The only importer of rich."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowopd_cli.errors import one_line, printable, redacted
from flowopd_cli.reports.series import finite
from flowopd_cli.reports.watch import BLOCKS, LETTERS, View, sparkline
from flowopd_cli.system.text import duration

PLAIN_SECONDS = 10.0
PLAIN_WIDTH = 120
SPARK_WIDTH = 40
COLORS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


class Console:
    """A :class:`flowopd_cli.system.progress.Progress` that draws a live bar on a terminal and plain lines elsewhere.

    ``quiet`` silences everything but the result; ``main=False`` (ranks above 0) silences those too.
    """

    def __init__(self, *, quiet: bool = False, main: bool = True) -> None:
        self.quiet = quiet or not main
        self._main = main
        terminal = sys.stderr.isatty()
        self._rich = RichConsole(stderr=True, highlight=False, width=None if terminal else PLAIN_WIDTH)
        self._live = terminal and not self.quiet
        self._bar: Progress | None = None
        self._begin(0, "", 0)

    def _begin(self, total: int, description: str, done: int) -> None:
        self._total, self._description, self._done, self._first = total, description, done, done
        self._started = time.monotonic()
        self._last_line = float("-inf")

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Begin ``total`` units of work; an earlier run finished ``done`` of them."""
        self.done()
        self._begin(total, description, done)
        if self._live:
            texts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            figures = TextColumn("{task.fields[figures]}"), TimeRemainingColumn()
            self._bar = Progress(*texts, *figures, console=self._rich)
            self._bar.start()
            self._bar.add_task(description, total=total, completed=done, figures="")

    def step(self, row: Mapping[str, float]) -> None:
        """Count one finished unit and show its rate, reward and loss; the row of iteration 0 counts none."""
        if row.get("iteration") == 0:
            return
        self._done += 1
        now = time.monotonic()
        seconds = (now - self._started) / (self._done - self._first)
        speed = f"{seconds:.2f} s/it" if seconds > 1 else f"{1 / max(seconds, 1e-9):.2f} it/s"
        metrics = [f"{name} {float(row[name]):.4f}" for name in ("reward", "loss") if row.get(name) is not None]
        figures = "  ".join([speed, *metrics])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, figures=figures)
        elif self._done >= self._total or now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            eta = duration((self._total - self._done) * seconds)
            self.note(f"{self._description} {self._done}/{self._total}  {figures}  eta {eta}")

    def note(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self._rich.print(redacted(text), markup=False, soft_wrap=True)

    def done(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table; every column but the first is aligned to the right."""
        if self.quiet:
            return
        table = Table(title=Text(title), title_justify="left")
        for number, name in enumerate(columns):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(str(value)) for value in row))
        self._rich.print(table)

    @contextmanager
    def viewer(self, *, live: bool) -> Iterator[Callable[[View], None]]:
        """A function that shows a run. If ``live``, each view replaces the previous one, otherwise it follows it."""
        marks = BLOCKS if self._rich.encoding.lower().startswith("utf") else LETTERS
        if not live:
            yield lambda view: self._rich.print(_render(view, marks))
            return
        with Live(console=self._rich, auto_refresh=False) as screen:
            yield lambda view: screen.update(_render(view, marks), refresh=True)

    def result(self, text: str) -> None:
        """Print the result of the command on stdout."""
        if self._main:
            print(text, flush=True)


def _render(view: View, marks: str) -> Group:
    lines: list[Any] = [
        Text.assemble((printable(view.run), "bold"), f"  {view.stage}  ", (view.status, COLORS.get(view.status, "")))
    ]
    if view.total is not None:
        text = f"{view.done}/{view.total}"
        text += "" if view.seconds is None else f"  {view.seconds:.2f} s an iteration"
        text += "" if view.eta is None else f"  about {duration(view.eta)} to go"
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=view.total, completed=view.done, width=SPARK_WIDTH), Text(text))
        lines.append(bar)
    table = Table.grid(padding=(0, 2))
    for name, values in view.curves.items():
        numbers, last = finite(values), finite(values[-1:])
        ends = f"{min(numbers):.4g} .. {max(numbers):.4g}" if numbers else ""
        cells = printable(name), sparkline(values, SPARK_WIDTH, marks), f"{last[0]:.4g}" if last else "-", ends
        table.add_row(*map(Text, cells))
    for name, text in view.results.items():
        table.add_row(Text(printable(name)), Text(text))
    lines += [table, *(Text(printable(f"sample  {path}"), overflow="fold") for path in view.samples)]
    return Group(*lines, *(Text(one_line(event), style="yellow") for event in view.events))
