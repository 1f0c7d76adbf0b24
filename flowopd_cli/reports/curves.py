"""The curves of a training: reward, KL, loss, clipping, gradient norm, throughput. Every axis has a label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.recipe import ColdstartRecipe, Recipe, TrainedRecipe
from flowopd_cli.reports.charts import DASHES, SERIES, Chart, Key, axes, set_log_scale, svg
from flowopd_cli.reports.series import Rows, column, finite, iterations, mean, names, smooth, thinned, window

MAX_LINES = 7
KL = "KL (nats per dimension)"
NORM = "L2 norm before clipping"


@dataclass(frozen=True)
class Series:
    """A line: its name, a value for each x, and half the height of a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    line: str = "solid"


@dataclass(frozen=True)
class Spec:
    """Title, y-axis with its unit and caption of a chart.

    ``zero`` starts the axis at 0, ``log`` makes it logarithmic for a wide range, ``legend`` names even a single line.
    """

    title: str
    y: str
    caption: str = ""
    zero: bool = False
    log: bool = False
    legend: bool = False


def line_chart(spec: Spec, series: Sequence[Series], name: str) -> Chart | None:
    """A chart of at most seven lines over iterations; ``None`` where no line has two points."""
    shown = [one for one in series if len(finite(one.y)) > 1][:MAX_LINES]
    if not shown:
        return None
    figure, ax = axes()
    keys = tuple(Key(printable(one.name)[:40], i, one.line) for i, one in enumerate(shown))
    smoothed = [_draw(ax, one, SERIES[key.color]) for one, key in zip(shown, keys, strict=True)]
    ax.set_xlabel("iteration")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(spec.y)
    ax.margins(x=0.01)
    _scale(ax, spec, [value for one in shown for value in finite(one.y)])
    captions = [spec.caption] if spec.caption else []
    captions += ["Thin: each iteration; thick: moving mean."] if any(smoothed) else []
    captions += [f"{len(series) - MAX_LINES} more are in the metrics file."] if len(series) > MAX_LINES else []
    ranges = [(key.name, finite(one.y)) for key, one in zip(keys, shown, strict=True)]
    alt = f"{spec.title}: " + "; ".join(f"{label} from {y[0]:.3g} to {y[-1]:.3g}" for label, y in ranges)
    legend = keys if len(shown) > 1 or spec.legend else ()
    return Chart(spec.title, alt, svg(figure, name), " ".join(captions), legend)


def _draw(ax: Any, one: Series, color: str) -> bool:
    """Draw a line and its band; whether the line is a moving mean."""
    x, y = thinned(one.x), thinned(one.y)
    width = window(len(y))
    center = smooth(y, width)
    if one.spread:
        spread = smooth(thinned(one.spread), width)
        low, high = ([a + sign * b for a, b in zip(center, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    if width > 1:
        ax.plot(x, y, color=color, linewidth=0.6, alpha=0.4)
    ax.plot(x, center, color=color, linestyle=DASHES[one.line], solid_joinstyle="round")
    return width > 1


def _scale(ax: Any, spec: Spec, values: Sequence[float]) -> None:
    """Scale the y-axis; it is logarithmic where positive values span more than two powers of ten."""
    if spec.log and min(values) > 0 and max(values) > 100 * min(values):
        set_log_scale(ax)
    elif spec.zero:
        ax.set_ylim(bottom=0)


def of_run(recipe: Recipe, rows: Rows) -> list[Chart]:
    """The curves of a training, those that its metrics have."""
    x = iterations(rows)

    def series(labels: Mapping[str, str]) -> list[Series]:
        dashes = {"kl_anchor": "dashed", "kl_base": "dotted"}
        return [Series(label, x, column(rows, n), line=dashes.get(n, "solid")) for n, label in labels.items()]

    teachers = {n: f"teacher {n.removeprefix('kl/')}" for n in sorted(names(rows, "kl/"))} or {"kl": "teachers"}
    divergences = {**teachers, "kl_anchor": "anchor", "kl_base": "base"}
    clipping = f"Clipped at {recipe.train.max_grad_norm:g}." if isinstance(recipe, TrainedRecipe) else ""
    seconds = {"seconds_collect": "collect", "seconds_learn": "learn"}
    phases = "Collect: rollouts, rewards, labels. Learn: forward, backward, optimizer."
    kl = Spec("KL to teacher and anchor", KL, "Mean over sampling steps.", log=True)
    charts = [
        _reward(rows, x),
        line_chart(kl, series(divergences), "kl"),
        kl_by_step(rows),
        line_chart(Spec("Loss", "loss"), series({"loss": "loss"}), "loss"),
        line_chart(Spec("Clip fraction", "share of rows", zero=True), series({"clip_fraction": "clipped"}), "clip"),
        line_chart(Spec("Gradient norm", NORM, clipping, zero=True), series({"grad_norm": "norm"}), "norm"),
        _throughput(recipe, rows, x),
        line_chart(Spec("Time", "seconds per iteration", phases, zero=True), series(seconds), "seconds"),
    ]
    return [chart for chart in charts if chart is not None]


def _reward(rows: Rows, x: Sequence[float]) -> Chart | None:
    spread = column(rows, "reward_std")
    total = Series("reward", x, column(rows, "reward"), spread if finite(spread) else ())
    parts = [name for name in names(rows, "reward/") if name.count("/") == 1]
    several = [Series(name.removeprefix("reward/"), x, column(rows, name)) for name in parts if len(parts) > 1]
    caption = "Band: one standard deviation of single pictures." if total.spread else ""
    return line_chart(Spec("Reward", "reward", caption), [total, *several], "reward")


def kl_by_step(rows: Rows) -> Chart | None:
    """The KL at each sampling step in the first, middle and last fifth of the training."""
    steps = sorted(int(n) for n in (name.removeprefix("kl_step/") for name in names(rows, "kl_step/")) if n.isdecimal())
    if len(steps) < 2:
        return None
    size = max(1, len(rows) // 5)
    middle = (len(rows) - size) // 2
    parts = {"first fifth": rows[:size], "middle fifth": rows[middle : middle + size], "last fifth": rows[-size:]}
    values = {name: [mean(column(part, f"kl_step/{i}")) for i in steps] for name, part in parts.items()}
    figure, ax = axes()
    for color, line in zip(SERIES, values.values(), strict=False):
        ax.plot(steps, line, color=color, marker="o", markersize=3)
    _scale(ax, Spec("", "", zero=True, log=True), [value for line in values.values() for value in finite(line)])
    ax.set_xticks(steps if len(steps) <= 12 else steps[:: -(-len(steps) // 10)])
    ax.set_xlabel("sampling step (0: pure noise)")
    ax.set_ylabel(KL)
    ends = zip(steps, values["first fifth"], values["last fifth"], strict=True)
    alt = "KL by sampling step: " + "; ".join(f"step {i} from {a:.3g} to {b:.3g}" for i, a, b in ends)
    caption = "KL to the teacher, mean over the iterations of each fifth."
    return Chart(
        "KL by sampling step", alt, svg(figure, "steps"), caption, tuple(Key(n, i) for i, n in enumerate(values))
    )


def pictures_per_iteration(recipe: Recipe) -> int | None:
    """How many pictures an iteration draws or learns from."""
    if isinstance(recipe, ColdstartRecipe):
        return recipe.sft.batch
    return recipe.train.groups * recipe.train.group_size if isinstance(recipe, TrainedRecipe) else None


def seconds(rows: Rows) -> list[float]:
    """The duration of each iteration."""
    pairs = zip(column(rows, "seconds_collect"), column(rows, "seconds_learn"), strict=True)
    return [collect + learn for collect, learn in pairs]


def _throughput(recipe: Recipe, rows: Rows, x: Sequence[float]) -> Chart | None:
    count = pictures_per_iteration(recipe)
    if count is None:
        return None
    rate = [count / value if value > 0 else math.nan for value in seconds(rows)]
    spec = Spec("Throughput", "pictures per second", f"{count} pictures an iteration.", zero=True)
    return line_chart(spec, [Series("rate", x, rate)], "rate")


def of_runs(runs: Mapping[str, Rows]) -> list[Chart]:
    """Curves of several runs on common axes, for each figure that one of them has."""
    specs = {
        "reward": Spec("Reward", "reward", "Each run's own reward.", legend=True),
        "kl": Spec("KL to the teachers", KL, log=True, legend=True),
        "kl_anchor": Spec("KL to the anchor", KL, log=True, legend=True),
        "grad_norm": Spec("Gradient norm", NORM, zero=True, legend=True),
    }
    charts = []
    for name, spec in specs.items():
        series = [Series(run, iterations(rows), column(rows, name)) for run, rows in runs.items()]
        charts.append(line_chart(spec, series, f"all{name}"))
    return [chart for chart in charts if chart is not None]
