"""Figures of a run's metrics as lists of numbers, whatever stands in the file. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

POINTS = 400  # of a curve: more than a screen can show
Rows = Sequence[Mapping[str, Any]]


def number(value: Any) -> float:
    """A figure as a number; NaN for anything else."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if fine else math.nan


def column(rows: Rows, name: str) -> list[float]:
    """One figure of every row, NaN where it is missing."""
    return [number(row.get(name)) for row in rows]


def iterations(rows: Rows) -> list[float]:
    """The iteration of every row."""
    told = column(rows, "iteration")
    return told if all(map(math.isfinite, told)) else [float(i + 1) for i in range(len(rows))]


def names(rows: Rows, prefix: str = "") -> list[str]:
    """The figures that rows have, those that begin with ``prefix``, in the order in which they appear."""
    found = dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(number(value)))
    return [name for name in found if name.startswith(prefix)]


def known(values: Iterable[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers, NaN without any."""
    found = known(values)
    return math.fsum(found) / len(found) if found else math.nan


def thinned(values: Sequence[float], points: int = POINTS) -> list[float]:
    """At most ``points`` means of equal stretches."""
    if len(values) <= points:
        return list(values)
    edges = [round(i * len(values) / points) for i in range(points + 1)]
    return [mean(values[a:b]) for a, b in pairwise(edges)]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean over ``window`` values; a gap stays one."""
    half = window // 2
    pairs = enumerate(values)
    return [mean(values[max(0, i - half) : i + half + 1]) if math.isfinite(v) else math.nan for i, v in pairs]


def window(count: int) -> int:
    """How many values a moving mean of ``count`` takes: an odd number, 1 where there are few."""
    return max(1, count // 12) | 1 if count >= 24 else 1
