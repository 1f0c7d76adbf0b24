"""What a stage may say while it works. The console implements it; tests and libraries use :class:`Silent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """A listener: how much there is to do, one call per finished unit, remarks, tables, the end."""

    def start(self, total: int, description: str, done: int = 0) -> None:
        """``total`` units of work called ``description`` begin, ``done`` of them finished by an earlier run."""
        ...

    def step(self, row: Mapping[str, float]) -> None:
        """One unit is done; ``row`` holds its figures, of which ``reward`` and ``loss`` are shown live."""
        ...

    def note(self, text: str) -> None:
        """A remark for the reader, one line."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of results for the reader."""
        ...

    def done(self) -> None:
        """The work that ``start`` announced is over."""
        ...


class Silent:
    """Says nothing."""

    def start(self, total: int, description: str, done: int = 0) -> None:
        """Ignore the announcement."""

    def step(self, row: Mapping[str, float]) -> None:
        """Ignore the figures."""

    def note(self, text: str) -> None:
        """Ignore the remark."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Ignore the table."""

    def done(self) -> None:
        """Ignore the end."""
