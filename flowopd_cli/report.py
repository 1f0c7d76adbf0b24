"""One self-contained ``report.html``: the table, the curves, the pictures. No torch, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.resources import files
from typing import Any

from flowopd_cli.card_scores import results as results_of
from flowopd_cli.run import RunDir

PALETTE = ("#3b6fd4", "#d4562b", "#2a9d63", "#9b4fc0", "#b08a12")
LEFT, RIGHT, TOP, BOTTOM = 34, 312, 12, 140


@dataclass(frozen=True)
class ModelEntry:
    """A row of the report: a model's name and the run that evaluated it."""

    name: str
    evaluation: RunDir

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """``{suite: {mean, stderr, n}}``, read once."""
        return results_of(self.evaluation)


def build(title: str, lead: str, models: Sequence[ModelEntry], runs: Sequence[RunDir]) -> str:
    """The report as HTML; every text is escaped."""
    from jinja2 import Environment

    results = {entry.name: entry.results for entry in models}
    suites = list(next(iter(results.values())))
    template = (files("flowopd_cli") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            lead=lead,
            suites=suites,
            models=table_rows(models, results, suites),
            images=sum(result["n"] for result in next(iter(results.values())).values()),
            charts=charts(runs),
            prompts=json.loads(models[0].evaluation.eval_file("prompts").read_text(encoding="utf-8")),
            runs=[run_row(run) for run in runs],
        )
    )


def table_rows(
    models: Sequence[ModelEntry], results: Mapping[str, Mapping[str, Mapping[str, Any]]], suites: Sequence[str]
) -> list[dict[str, Any]]:
    """One dictionary a model: its cells, its average, its picture; the best of each column marked."""
    best = {suite: max(result[suite]["mean"] for result in results.values()) for suite in suites}
    averages = {name: sum(r[s]["mean"] for s in suites) / len(suites) for name, r in results.items()}
    rows = []
    for entry in models:
        result = results[entry.name]
        cells = [{**result[s], "best": result[s]["mean"] == best[s]} for s in suites]
        average = averages[entry.name]
        rows.append(
            {
                "name": entry.name,
                "cells": cells,
                "average": average,
                "best": average == max(averages.values()),
                "picture": picture(entry.evaluation),
            }
        )
    return rows


def picture(run: RunDir) -> str:
    """The evaluation's row of pictures, base64; empty when it kept none."""
    path = run.image_file("eval")
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


def charts(runs: Sequence[RunDir]) -> list[dict[str, Any]]:
    """A reward chart for each run that logged rewards, a KL chart for each that logged divergences."""
    drawn = []
    for run in runs:
        rows = run.rows()
        for what, keys in (("reward", ("reward",)), ("KL", ("kl", "kl_anchor", "kl_base"))):
            series = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
            series = {key: values for key, values in series.items() if len(values) > 1}
            if series:
                drawn.append(chart(f"{run.path.name}: {what}", series))
    return drawn


def chart(title: str, series: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Polyline points of each series on one pair of axes."""
    low = min(min(values) for values in series.values())
    high = max(max(values) for values in series.values())
    span = (high - low) or 1.0
    lines = []
    for color, (name, values) in zip(PALETTE, series.items(), strict=False):
        step = (RIGHT - LEFT) / (len(values) - 1)
        points = " ".join(
            f"{LEFT + i * step:.1f},{BOTTOM - (value - low) / span * (BOTTOM - TOP):.1f}"
            for i, value in enumerate(values)
        )
        lines.append({"name": name, "points": points, "color": color})
    last = max(len(values) for values in series.values())
    return {"title": title, "lines": lines, "low": f"{low:.3g}", "high": f"{high:.3g}", "last": last}


def run_row(run: RunDir) -> dict[str, Any]:
    """Name, stage, duration and parents of a run."""
    manifest = run.manifest()
    seconds = 0.0
    if manifest.finished:
        span = datetime.fromisoformat(manifest.finished) - datetime.fromisoformat(manifest.created)
        seconds = span.total_seconds()
    parents = ", ".join(f"{parent.role}: {parent.ref.rsplit('/', 1)[-1]}" for parent in manifest.parents)
    return {"name": run.path.name, "stage": manifest.stage, "seconds": seconds, "parents": parents or "—"}
