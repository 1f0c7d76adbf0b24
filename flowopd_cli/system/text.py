"""Texts for people: near names, tables, durations, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from flowopd_cli.errors import printable

LONGEST = 80  # of a word that is compared
GIB = 2**30


def suggest(word: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` when some known word is near, else nothing."""
    near = get_close_matches(word[:LONGEST], known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text, with control characters escaped."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 05 s`` or ``7.1 s``."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{max(seconds, 0):.3g} s"


def gib(count: float, decimals: int = 1) -> str:
    """Bytes as GiB, or as MiB below a tenth of one."""
    return f"{count / GIB:.{decimals}f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
