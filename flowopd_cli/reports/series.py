"""Metrics of a run as lists of numbers, with NaN for values that are not numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def number(value: Any) -> float:
    """A finite number as a float, NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else math.nan


def column(rows: Rows, name: str) -> list[float]:
    """One metric of every row."""
    return [number(row.get(name)) for row in rows]


def names(rows: Rows, prefix: str) -> list[str]:
    """The metrics that begin with ``prefix``, in order of appearance."""
    numeric = dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(number(value)))
    return [name for name in numeric if name.startswith(prefix)]


def finite(values: Iterable[float]) -> list[float]:
    """The values that are finite."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values, NaN if there are none."""
    numbers = finite(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def thinned(values: Sequence[float], points: int) -> list[float]:
    """At most ``points`` values, each the mean of an interval."""
    if len(values) <= points:
        return list(values)
    edges = [round(i * len(values) / points) for i in range(points + 1)]
    return [mean(values[a:b]) for a, b in pairwise(edges)]


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Centered moving mean over ``width`` values; NaN stays NaN."""
    half = width // 2
    return [mean(values[max(0, i - half) : i + half + 1]) if v == v else v for i, v in enumerate(values)]
