"""What each model gained and lost against the base, suite by suite, in panels of suites that share a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.reports.charts import INK, MARKS, SERIES, Chart, Key, axes, svg

TITLE = "Change against the base"
NOTE = (
    "Right of the line a model is better than the base at that suite, left of it worse. Bars: one standard error of "
    "the difference, as if the two were independent."
)
NAME, LABEL = 40, 28  # characters of a suite's name and of a model's
Changes = Mapping[str, Mapping[str, tuple[float, float | None]]]


def panels(changes: Changes, scales: Sequence[Sequence[str]]) -> list[Chart]:
    """The change of each suite against the base: a panel for each scale, several where it has more than seven suites.

    ``changes`` is ``{model: {suite: (change, standard error)}}``; a suite that no model has a change of has no place.
    """
    found: list[Chart] = []
    for scale in scales:
        suites = [suite for suite in scale if any(_known(own, suite) for own in changes.values())]
        count = -(-len(suites) // len(MARKS))
        edges = [round(i * len(suites) / max(1, count)) for i in range(count + 1)]
        reach = _reach(changes, suites) if count > 1 else None
        found += [_panel(changes, suites[a:b], reach, f"balance{len(found)}x{a}x") for a, b in pairwise(edges)]
    return found


def _known(own: Mapping[str, tuple[float, float | None]], suite: str) -> bool:
    return suite in own and math.isfinite(own[suite][0])


def _reach(changes: Changes, suites: Sequence[str]) -> tuple[float, float]:
    """From the lowest to the highest change with its error, zero between them."""
    ends = [0.0]
    for own in changes.values():
        for change, error in (own[suite] for suite in suites if _known(own, suite)):
            ends += [change - (error or 0.0), change + (error or 0.0)]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _panel(changes: Changes, suites: Sequence[str], reach: tuple[float, float] | None, name: str) -> Chart:
    models = [m for m, own in changes.items() if any(_known(own, suite) for suite in suites)]
    figure, plain = axes(4.6, 0.55 + (0.2 + 0.07 * len(suites)) * len(models))
    keys = tuple(Key(printable(s)[:NAME], i, "", mark) for i, (s, mark) in enumerate(zip(suites, MARKS, strict=False)))
    apart = min(0.17, 0.8 / len(suites))
    for number, (suite, key) in enumerate(zip(suites, keys, strict=True)):
        offset = (number - (len(suites) - 1) / 2) * apart
        points = [(changes[m][suite], i + offset) for i, m in enumerate(models) if _known(changes[m], suite)]
        _points(plain, points, key)
    plain.axvline(0, color=INK, linewidth=0.8)
    plain.set_yticks(range(len(models)), [_short(m) for m in models])
    plain.tick_params(axis="y", labelcolor=INK)
    plain.set_ylim(len(models) - 0.5, -0.5)
    plain.grid(visible=False, axis="y")
    plain.set_xlabel("change of the suite's mean against the base")
    if reach:
        plain.set_xlim(*reach)
    alt = f"{TITLE}: " + "; ".join(f"{_short(m)}: {_told(changes[m], suites)}" for m in models)
    return Chart(TITLE, alt, svg(figure, name), "", keys)


def _short(model: str) -> str:
    text = printable(model)
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


def _points(plain: Any, points: Sequence[tuple[tuple[float, float | None], float]], key: Key) -> None:
    look = {"color": SERIES[key.color], "marker": MARKS[key.mark], "linestyle": "none", "markersize": 3.5}
    x, error = [change for (change, _), _ in points], [error or 0.0 for (_, error), _ in points]
    plain.errorbar(x, [y for _, y in points], xerr=error, elinewidth=0.9, **look)


def _told(own: Mapping[str, tuple[float, float | None]], suites: Sequence[str]) -> str:
    return ", ".join(f"{printable(suite)[:NAME]} {own[suite][0]:+.3f}" for suite in suites if _known(own, suite))
