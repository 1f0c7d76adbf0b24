"""How a model compares with others, as a sentence that follows from the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowopd_cli.reports.table import change
from flowopd_cli.runs.evaluations import AVERAGE

SURPASSES, EQUALS, FALLS_SHORT = "surpasses", "equals", "falls short of"
Results = Mapping[str, Mapping[str, Any]]  # {suite: {mean, stderr}}


def verdict(name: str, rivals: Sequence[tuple[str, str]], results: Mapping[str, Results]) -> str:
    """A sentence that compares the model ``name`` with each of ``rivals``, a model and a suite or ``average``.

    Rivals without ``results`` are left out; the sentence is empty if nothing is left.
    """
    groups: dict[str, list[str]] = {SURPASSES: [], EQUALS: [], FALLS_SHORT: []}
    for rival, suite in rivals if name in results else ():
        if rival in results:
            mean, error = difference(results[name], results[rival], suite)
            figures = f"{mean:+.3f}" + ("" if error is None else f" ± {error:.3f}")
            groups[outcome(mean, error)].append(f"{rival} on {suite} ({figures})")
    parts = [f"{word} {_listed(texts)}" for word, texts in groups.items() if texts]
    if len(parts) > 1 and groups[FALLS_SHORT]:
        parts[-1] = f"but {parts[-1]}"
    return f"The {name} {'; '.join(parts)}." if parts else ""


def outcome(mean: float, error: float | None) -> str:
    """What a difference means: equality within one standard error of it."""
    if abs(mean) <= (error or 0.0):
        return EQUALS
    return SURPASSES if mean > 0 else FALLS_SHORT


def difference(one: Results, other: Results, suite: str) -> tuple[float, float | None]:
    """The difference of two models on a suite, or on the plain mean of all suites as ``average``, and its standard
    error, as if models and suites were independent.
    """
    if suite != AVERAGE or AVERAGE in one:
        return change(one[suite], other[suite])
    means, errors = zip(*(change(one[name], other[name]) for name in one), strict=True)
    return math.fsum(means) / len(means), None if None in errors else math.hypot(*errors) / len(errors)


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
