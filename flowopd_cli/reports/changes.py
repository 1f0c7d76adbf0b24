"""The change of each model against the base, suite by suite, in panels of suites that share a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flowopd_cli.errors import printable
from flowopd_cli.reports.charts import INK, MARKS, SERIES, Chart, Key, axes, svg

TITLE = "Change against the base"
NOTE = (
    "Right of the line a model is better than the base at that suite, left of it worse. Bars: one standard error of "
    "the difference on the same prompts; where an evaluation has no rows, as if the two were independent."
)
MAX_SUITE, MAX_MODEL = 40, 28  # characters of a name
Changes = Mapping[str, Mapping[str, tuple[float, float | None]]]
Errors = Mapping[str, Mapping[str, tuple[float, float]]]


def panels(changes: Changes, scales: Sequence[Sequence[str]]) -> list[Chart]:
    """A panel for each scale with changes, several where it has more than seven suites.

    ``changes`` is ``{model: {suite: (change, standard error)}}``; changes that are not finite are left out.
    """
    finite = {
        model: {suite: (change, error or 0.0) for suite, (change, error) in pairs.items() if math.isfinite(change)}
        for model, pairs in changes.items()
    }
    charts: list[Chart] = []
    for scale in scales:
        suites = [suite for suite in scale if any(suite in pairs for pairs in finite.values())]
        shown = [pairs[suite] for pairs in finite.values() for suite in suites if suite in pairs]
        ends = [0.0, *(change + sign * error for change, error in shown for sign in (-1, 1))]
        margin = 0.05 * (max(ends) - min(ends)) or 0.01
        limits = min(ends) - margin, max(ends) + margin
        for start in range(0, len(suites), len(MARKS)):
            charts.append(_panel(finite, suites[start : start + len(MARKS)], limits, f"changes{len(charts)}x"))
    return charts


def _panel(changes: Errors, suites: Sequence[str], limits: tuple[float, float], name: str) -> Chart:
    models = [model for model, pairs in changes.items() if any(suite in pairs for suite in suites)]
    figure, ax = axes(4.6, 0.55 + (0.2 + 0.07 * len(suites)) * len(models))
    keys = tuple(Key(_cut(s, MAX_SUITE), i, "", mark) for i, (s, mark) in enumerate(zip(suites, MARKS, strict=False)))
    distance = min(0.17, 0.8 / len(suites))
    for number, (suite, key) in enumerate(zip(suites, keys, strict=True)):
        offset = (number - (len(suites) - 1) / 2) * distance
        points = [(i + offset, *changes[model][suite]) for i, model in enumerate(models) if suite in changes[model]]
        y, x, errors = zip(*points, strict=True)
        style = {"color": SERIES[key.color], "marker": MARKS[key.mark], "linestyle": "none", "markersize": 3.5}
        ax.errorbar(x, y, xerr=errors, elinewidth=0.9, **style)
    ax.axvline(0, color=INK, linewidth=0.8)
    labels = [_cut(model, MAX_MODEL) for model in models]
    ax.set_yticks(range(len(models)), labels)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("change of the suite's mean against the base")
    ax.set_xlim(*limits)
    texts = [
        f"{label}: " + ", ".join(f"{_cut(s, MAX_SUITE)} {changes[m][s][0]:+.3f}" for s in suites if s in changes[m])
        for label, m in zip(labels, models, strict=True)
    ]
    return Chart(TITLE, f"{TITLE}: {'; '.join(texts)}", svg(figure, name), "", keys)


def _cut(text: str, length: int) -> str:
    text = printable(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"
