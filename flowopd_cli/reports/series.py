"""Figures of a run's metrics as lists of numbers, NaN for anything else in the file. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

MAX_POINTS = 400  # of a curve
Rows = Sequence[Mapping[str, Any]]


def number(value: Any) -> float:
    """A finite number as a float, NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else math.nan


def column(rows: Rows, name: str) -> list[float]:
    """One figure of every row, NaN where it is missing."""
    return [number(row.get(name)) for row in rows]


def iterations(rows: Rows) -> list[float]:
    """The iteration of every row."""
    logged = column(rows, "iteration")
    return logged if all(map(math.isfinite, logged)) else [float(i + 1) for i in range(len(rows))]


def names(rows: Rows, prefix: str = "") -> list[str]:
    """The figures of the rows that begin with ``prefix``, in order of appearance."""
    logged = dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(number(value)))
    return [name for name in logged if name.startswith(prefix)]


def finite(values: Iterable[float]) -> list[float]:
    """The values that are finite."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values, NaN without any."""
    numbers = finite(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def thinned(values: Sequence[float], points: int = MAX_POINTS) -> list[float]:
    """At most ``points`` means of equal stretches."""
    if len(values) <= points:
        return list(values)
    edges = [round(i * len(values) / points) for i in range(points + 1)]
    return [mean(values[a:b]) for a, b in pairwise(edges)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centered moving mean over ``window`` values; a gap stays a gap."""
    half = window // 2
    pairs = enumerate(values)
    return [mean(values[max(0, i - half) : i + half + 1]) if math.isfinite(v) else math.nan for i, v in pairs]


def window(count: int) -> int:
    """The width of the moving mean of ``count`` values: odd, 1 for few values."""
    return max(1, count // 12) | 1 if count >= 24 else 1
