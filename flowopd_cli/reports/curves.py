"""The curves of a training: reward, KL, loss, clipping, gradient norm, throughput. Every axis has a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.recipe import ColdstartRecipe, Recipe, TrainedRecipe
from flowopd_cli.reports.charts import DASHES, SERIES, Chart, Key, axes, svg
from flowopd_cli.reports.series import Rows, column, finite, mean, names, smooth, thinned

MAX_LINES, MAX_POINTS = 7, 400
KL = "KL (nats per dimension)"
NORM = "L2 norm before clipping"
VELOCITY = "mean squared difference"
DIVERSITY = "distance of latents"
FIXED = "Fixed prompts and seeds."


@dataclass(frozen=True)
class Series:
    """A line over iterations; ``spread`` is half the height of a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    line: str = "solid"


@dataclass(frozen=True)
class Spec:
    """Title, label of the y-axis and caption of a chart.

    ``zero`` starts the y-axis at 0, ``log`` makes it logarithmic for a wide range, ``legend`` labels single lines too.
    """

    title: str
    y: str
    caption: str = ""
    zero: bool = False
    log: bool = False
    legend: bool = False


def line_chart(name: str, spec: Spec, series: Sequence[Series]) -> Iterable[Chart]:
    """A chart of at most seven lines over iterations; nothing if no line has two points."""
    shown = [line for line in series if len(finite(line.y)) > 1][:MAX_LINES]
    if not shown:
        return
    figure, ax = axes()
    keys = tuple(Key(printable(line.name)[:40], i, line.line) for i, line in enumerate(shown))
    smoothed = [_draw(ax, line, color) for line, color in zip(shown, SERIES, strict=False)]
    ax.set_xlabel("iteration")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(spec.y)
    ax.margins(x=0.01)
    values = [finite(line.y) for line in shown]
    _scale(ax, spec, values)
    captions = [spec.caption] if spec.caption else []
    captions += ["Thin: each iteration; thick: moving mean."] if any(smoothed) else []
    captions += [f"{len(series) - MAX_LINES} more are in the metrics file."] if len(series) > MAX_LINES else []
    ranges = (f"{key.name} from {y[0]:.3g} to {y[-1]:.3g}" for key, y in zip(keys, values, strict=True))
    legend = keys if len(shown) > 1 or spec.legend else ()
    yield Chart(spec.title, f"{spec.title}: {'; '.join(ranges)}", svg(figure, name), " ".join(captions), legend)


def _draw(ax: Any, series: Series, color: str) -> bool:
    """Draw a line and its band; returns whether the line is a moving mean."""
    x, y = thinned(series.x, MAX_POINTS), thinned(series.y, MAX_POINTS)
    width = max(1, len(y) // 12) | 1 if len(y) >= 24 else 1
    center = smooth(y, width)
    if series.spread:
        spread = smooth(thinned(series.spread, MAX_POINTS), width)
        low, high = ([a + sign * b for a, b in zip(center, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    if width > 1:
        ax.plot(x, y, color=color, linewidth=0.6, alpha=0.4)
    ax.plot(x, center, color=color, linestyle=DASHES[series.line], solid_joinstyle="round")
    return width > 1


def _scale(ax: Any, spec: Spec, lines: Iterable[Sequence[float]]) -> None:
    values = [value for line in lines for value in line]
    if spec.log and min(values) > 0 and max(values) > 100 * min(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    elif spec.zero:
        ax.set_ylim(bottom=0)


def of_run(recipe: Recipe, rows: Rows) -> list[Chart]:
    """The curves of a training for which it has metrics."""
    x = column(rows, "iteration")

    def watched(labels: Mapping[str, str]) -> list[Series]:
        """Lines from watch to watch."""
        columns = {name: column(rows, f"watch/{name}") for name in labels}
        points = {name: [(a, b) for a, b in zip(x, y, strict=True) if b == b] for name, y in columns.items()}
        lines = {name: ([a for a, _ in pairs], [b for _, b in pairs]) for name, pairs in points.items() if pairs}
        return [Series(labels[name], a, b) for name, (a, b) in lines.items()]

    def series(labels: Mapping[str, str]) -> list[Series]:
        dashes = {"kl_anchor": "dashed", "kl_base": "dotted"}
        return [Series(label, x, column(rows, n), line=dashes.get(n, "solid")) for n, label in labels.items()]

    spread = column(rows, "reward_std")
    reward = Series("reward", x, column(rows, "reward"), spread if finite(spread) else ())
    parts = {name: name.removeprefix("reward/") for name in names(rows, "reward/") if name.count("/") == 1}
    band = "Band: one standard deviation of single pictures." if reward.spread else ""
    teachers = {n: f"teacher {n.removeprefix('kl/')}" for n in sorted(names(rows, "kl/"))} or {"kl": "teachers"}
    kl = Spec("KL to teacher and anchor", KL, "Mean over sampling steps.", log=True)
    clipping = f"Clipped at {recipe.train.max_grad_norm:g}." if isinstance(recipe, TrainedRecipe) else ""
    count = pictures_per_iteration(recipe)
    rate = [count / value if count and value > 0 else math.nan for value in seconds(rows)]
    throughput = Spec("Throughput", "pictures per second", f"{count} pictures an iteration.", zero=True)
    own = {f"kl/{n.removeprefix('watch/kl/')}": n.removeprefix("watch/kl/") for n in sorted(names(rows, "watch/kl/"))}
    fixed = {n: f"{task}, teacher's states" for n, task in own.items()}
    fixed |= {f"kl_noised/{task}": f"{task}, noised pictures" for task in own.values()}
    held_out = {n: n.removeprefix("reward/") for n in (w.removeprefix("watch/") for w in names(rows, "watch/reward/"))}
    tones = {"brightness": "brightness", "saturation": "saturation"}
    distances = {"distance_base": "to the base", "distance_slow": "to the slow copy"}
    latents = [*series({"latent_norm": "rollout"}), *watched({"latent_norm": "fixed prompts and seeds"})]
    phases = "Collect: rollouts, rewards, labels. Learn: forward, backward, optimizer."
    time = Spec("Time", "seconds per iteration", phases, zero=True)
    return [
        *line_chart("reward", Spec("Reward", "reward", band), [reward, *series(parts if len(parts) > 1 else {})]),
        *line_chart("kl", kl, series({**teachers, "kl_anchor": "anchor", "kl_base": "base"})),
        *line_chart("fixed", Spec("KL to the teachers at fixed states", KL, FIXED, log=True), watched(fixed)),
        *kl_by_step(rows),
        *line_chart("held_out", Spec("Held-out rewards", "reward", FIXED, legend=True), watched(held_out)),
        *line_chart("drift", Spec("Distance to the base", KL, FIXED, log=True), watched({"kl_base": "KL"})),
        *line_chart(
            "drifted", Spec("Distance to the base", VELOCITY, FIXED, log=True), watched({"distance_base": "v"})
        ),
        *line_chart("tones", Spec("Brightness and saturation", "mean of pixels", FIXED), watched(tones)),
        *line_chart(
            "detail", Spec("High frequencies", "RMS of luminance", FIXED), watched({"high_frequency": "detail"})
        ),
        *line_chart(
            "diversity", Spec("Diversity", DIVERSITY, FIXED, zero=True), watched({"diversity": "within a group"})
        ),
        *line_chart("latents", Spec("Latent norm", "RMS of final latents"), latents),
        *line_chart("distance", Spec("Velocity distance", VELOCITY, log=True, legend=True), series(distances)),
        *line_chart("loss", Spec("Loss", "loss"), series({"loss": "loss"})),
        *line_chart("clip", Spec("Clip fraction", "share of rows", zero=True), series({"clip_fraction": "clipped"})),
        *line_chart("norm", Spec("Gradient norm", NORM, clipping, zero=True), series({"grad_norm": "norm"})),
        *line_chart("rate", throughput, [Series("rate", x, rate)]),
        *line_chart("seconds", time, series({"seconds_collect": "collect", "seconds_learn": "learn"})),
    ]


def kl_by_step(rows: Rows) -> Iterable[Chart]:
    """The KL at each sampling step in the first, middle and last fifth of the training."""
    steps = sorted(int(n) for n in (name.removeprefix("kl_step/") for name in names(rows, "kl_step/")) if n.isdecimal())
    if len(steps) < 2:
        return
    size = max(1, len(rows) // 5)
    middle = (len(rows) - size) // 2
    parts = {"first fifth": rows[:size], "middle fifth": rows[middle : middle + size], "last fifth": rows[-size:]}
    values = {name: [mean(column(part, f"kl_step/{i}")) for i in steps] for name, part in parts.items()}
    if not any(map(finite, values.values())):
        return
    figure, ax = axes()
    for color, line in zip(SERIES, values.values(), strict=False):
        ax.plot(steps, line, color=color, marker="o", markersize=3)
    _scale(ax, Spec("", "", zero=True, log=True), map(finite, values.values()))
    ax.set_xticks(steps if len(steps) <= 12 else steps[:: -(-len(steps) // 10)])
    ax.set_xlabel("sampling step (0: pure noise)")
    ax.set_ylabel(KL)
    ends = zip(steps, values["first fifth"], values["last fifth"], strict=True)
    texts = (f"step {i} from {a:.3g} to {b:.3g}" for i, a, b in ends if a == a and b == b)
    alt = "KL by sampling step: " + "; ".join(texts)
    caption = "KL to the teacher, mean over the iterations of each fifth."
    legend = tuple(Key(name, i) for i, name in enumerate(values))
    yield Chart("KL by sampling step", alt, svg(figure, "steps"), caption, legend)


def pictures_per_iteration(recipe: Recipe) -> int | None:
    """How many pictures an iteration draws or learns from."""
    if isinstance(recipe, ColdstartRecipe):
        return recipe.sft.batch
    return recipe.train.groups * recipe.train.group_size if isinstance(recipe, TrainedRecipe) else None


def seconds(rows: Rows) -> list[float]:
    """The duration of each iteration."""
    return [a + b for a, b in zip(column(rows, "seconds_collect"), column(rows, "seconds_learn"), strict=True)]


def of_runs(runs: Mapping[str, Rows]) -> list[Chart]:
    """Curves of several runs on common axes, for each metric that one of them has."""
    specs = {
        "reward": Spec("Reward", "reward", "Each run's own reward.", legend=True),
        "kl": Spec("KL to the teachers", KL, log=True, legend=True),
        "kl_anchor": Spec("KL to the anchor", KL, log=True, legend=True),
        "grad_norm": Spec("Gradient norm", NORM, zero=True, legend=True),
    }
    charts = []
    for name, spec in specs.items():
        series = [Series(run, column(rows, "iteration"), column(rows, name)) for run, rows in runs.items()]
        charts += line_chart(f"all{name}", spec, series)
    return charts
