"""Words and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from flowopd_cli.errors import printable

LONGEST = 80  # of a word that is compared


def suggest(word: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` when some known word is near, else nothing."""
    near = get_close_matches(word[:LONGEST], known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, aligned; what no terminal should obey is written out."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
