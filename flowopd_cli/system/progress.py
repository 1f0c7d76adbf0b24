"""A stage's progress reports. The console implements them; tests and libraries use :class:`Silent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Progress(Protocol):
    """A listener to the work of a stage."""

    def start(self, total: int, description: str, done: int = 0) -> None:
        """``total`` units of work called ``description`` begin, ``done`` of them finished by an earlier run."""

    def step(self, row: Mapping[str, float]) -> None:
        """One unit is done; ``row`` holds its figures, of which ``reward`` and ``loss`` are shown live."""

    def note(self, text: str) -> None:
        """A remark for the reader, one line."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of results for the reader."""

    def done(self) -> None:
        """The work that ``start`` announced is over."""


class Silent(Progress):
    """Ignores every call."""
