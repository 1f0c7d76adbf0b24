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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowopd_cli.errors import one_line, printable, redacted
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
        self._task: TaskID | None = None
        self._begin(0, "", 0)

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Begin ``total`` units, of which an earlier run has finished ``done``."""
        self.done()
        self._begin(total, description, done)
        if self._live:
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._rich,
            )
            bar.start()
            self._bar, self._task = bar, bar.add_task(description, total=total, completed=done, figures="")

    def step(self, row: Mapping[str, float]) -> None:
        """Count one finished unit and show its rate, reward and loss."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, figures=self._figures(row))
            return
        now = time.monotonic()
        if self._done >= self._total or now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            self._print(f"{self._description} {self._done}/{self._total}  {self._figures(row)}  eta {self._eta()}")

    def note(self, text: str) -> None:
        """Print one line."""
        self._print(text)

    def done(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table; every column but the first is aligned to the right."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(columns):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self._rich.print(table)

    @contextmanager
    def viewer(self, *, live: bool) -> Iterator[Callable[[View], None]]:
        """A function that shows a run: each view in place of the one before, or below it where not ``live``."""
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

    def _begin(self, total: int, description: str, done: int) -> None:
        self._total, self._description, self._done, self._first = total, description, done, done
        self._started = time.monotonic()
        self._last_line = float("-inf")

    def _rate(self) -> float:
        """Units per second of this session; those of an earlier run do not count."""
        elapsed = time.monotonic() - self._started
        return (self._done - self._first) / elapsed if elapsed > 0 else 0.0

    def _eta(self) -> str:
        rate = self._rate()
        return duration((self._total - self._done) / rate) if rate > 0 else "?"

    def _figures(self, row: Mapping[str, float]) -> str:
        rate = self._rate()
        speed = f"{rate:.2f} it/s" if rate >= 1 or rate == 0 else f"{1 / rate:.2f} s/it"
        shown = [f"{name} {float(row[name]):.4f}" for name in ("reward", "loss") if row.get(name) is not None]
        return "  ".join([speed, *shown])

    def _print(self, text: str) -> None:
        if not self.quiet:
            self._rich.print(redacted(text), markup=False, soft_wrap=True)


def _render(view: View, marks: str) -> Group:
    """A run's view: a line about it, how far it is, a curve a line, then results, pictures and what happened."""
    head = Text.assemble((printable(view.run), "bold"), f"  {view.stage}  ", (view.status, COLORS.get(view.status, "")))
    table = Table.grid(padding=(0, 2))
    for curve in view.curves:
        values = [value for value in curve.values if value is not None]
        ends = f"{min(values):.4g} .. {max(values):.4g}" if values else ""
        last = curve.values[-1]
        cells = sparkline(curve.values, SPARK_WIDTH, marks), "-" if last is None else f"{last:.4g}", ends
        table.add_row(*(Text(cell) for cell in (printable(curve.name), *cells)))
    for name, text in view.results:
        table.add_row(Text(printable(name)), Text(text))
    lines = [Text(printable(f"sample  {path}"), overflow="fold") for path in view.samples]
    lines += [Text(one_line(event), style="yellow") for event in view.events]
    return Group(head, *_progress_bar(view), table, *lines)


def _progress_bar(view: View) -> Iterator[Table | Text]:
    if view.total is None:
        return
    text = f"{view.done}/{view.total}"
    text += "" if view.seconds is None else f"  {view.seconds:.2f} s an iteration"
    text += "" if view.eta is None else f"  about {duration(view.eta)} to go"
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=view.total, completed=view.done, width=SPARK_WIDTH), Text(text))
    yield bar
