"""Rows as plain text for stdout."""

from __future__ import annotations

from collections.abc import Sequence

from flowopd_cli.errors import printable


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, aligned; what no terminal should obey is written out."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
