"""The curves of a training, each with its axes named: reward, KL, loss, clipping, gradient norm, throughput."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd_cli.errors import printable
from flowopd_cli.recipe import ColdstartRecipe, Recipe, TrainedRecipe
from flowopd_cli.reports.charts import DASHES, SERIES, Chart, Key, axes, set_log_scale, svg
from flowopd_cli.reports.series import Rows, column, iterations, known, mean, names, smooth, thinned, window

MOST = 7
ITERATION = "iteration"


@dataclass(frozen=True)
class Series:
    """A line: its name, a value for each x, and half the height of the band around it, where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    line: str = "solid"


@dataclass(frozen=True)
class Shape:
    """What a chart says of itself: title, the y-axis with its unit, what its caption explains."""

    title: str
    y: str
    caption: str = ""
    zero: bool = False
    log: bool = False
    named: bool = False


def lines(shape: Shape, series: Sequence[Series], name: str) -> Chart | None:
    """A chart of at most seven lines over iterations; ``None`` where no line has two points."""
    shown = [s for s in series if len(known(s.y)) > 1][:MOST]
    if not shown:
        return None
    figure, plain = axes()
    keys = tuple(Key(printable(one.name)[:40], i, one.line) for i, one in enumerate(shown))
    smoothed = [_line(plain, one, SERIES[key.color]) for one, key in zip(shown, keys, strict=True)]
    plain.set_xlabel(ITERATION)
    plain.xaxis.get_major_locator().set_params(integer=True)
    plain.set_ylabel(shape.y)
    plain.margins(x=0.01)
    if shape.log and _spans([value for one in shown for value in known(one.y)]):
        set_log_scale(plain)
    elif shape.zero:
        plain.set_ylim(bottom=0)
    told = [shape.caption] if shape.caption else []
    told += ["Thin: each iteration; thick: moving mean."] if any(smoothed) else []
    told += [f"{len(series) - MOST} more are in the metrics file."] if len(series) > MOST else []
    alt = f"{shape.title}: {'; '.join(_told(one) for one in shown)}"
    legend = keys if len(shown) > 1 or shape.named else ()
    return Chart(shape.title, alt, svg(figure, name), " ".join(told), legend)


def _line(plain: Any, one: Series, color: str) -> bool:
    """Draw a line, over a band where it has a spread; whether it is a moving mean."""
    x, y = thinned(one.x), thinned(one.y)
    width = window(len(y))
    even = smooth(y, width)
    if one.spread:
        spread = smooth(thinned(one.spread), width)
        low, high = ([a + sign * b for a, b in zip(even, spread, strict=True)] for sign in (-1, 1))
        plain.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    if width > 1:
        plain.plot(x, y, color=color, linewidth=0.6, alpha=0.4)
    plain.plot(x, even, color=color, linestyle=DASHES[one.line], solid_joinstyle="round")
    return width > 1


def _told(one: Series) -> str:
    values = known(one.y)
    return f"{printable(one.name)[:40]} from {values[0]:.3g} to {values[-1]:.3g}"


def _spans(values: Sequence[float]) -> bool:
    """Whether positive values span two powers of ten and more."""
    return min(values) > 0 and max(values) > 100 * min(values)


def training(recipe: Recipe, rows: Rows) -> list[Chart]:
    """All curves that a run's metrics have something for."""
    x = iterations(rows)

    def plain(found: Mapping[str, str]) -> list[Series]:
        lines = {"kl_anchor": "dashed", "kl_base": "dotted"}
        return [Series(label, x, column(rows, n), line=lines.get(n, "solid")) for n, label in found.items()]

    drawn_here = [
        _reward(rows, x),
        lines(
            Shape("KL to teacher and anchor", "KL (nats per dimension)", "Mean over sampling steps.", log=True),
            plain(_divergences(rows)),
            "kl",
        ),
        steps(rows),
        lines(Shape("Loss", "loss"), plain({"loss": "loss"}), "loss"),
        lines(Shape("Clip fraction", "share of rows", zero=True), plain({"clip_fraction": "clipped"}), "clip"),
        lines(
            Shape("Gradient norm", "L2 norm before clipping", _clipping(recipe), zero=True),
            plain({"grad_norm": "norm"}),
            "norm",
        ),
        _throughput(recipe, rows, x),
        _seconds(rows, x),
    ]
    return [chart for chart in drawn_here if chart is not None]


def _reward(rows: Rows, x: Sequence[float]) -> Chart | None:
    whole = Series("reward", x, column(rows, "reward"), column(rows, "reward_std"))
    if not known(whole.spread):
        whole = Series("reward", x, whole.y)
    parts = [name for name in names(rows, "reward/") if name.count("/") == 1]
    several = [Series(name.removeprefix("reward/"), x, column(rows, name)) for name in parts if len(parts) > 1]
    band = "Band: one standard deviation of single pictures." if whole.spread else ""
    return lines(Shape("Reward", "reward", band), [whole, *several], "reward")


def _divergences(rows: Rows) -> dict[str, str]:
    """The KL of each teacher, or of all together where the rows do not tell them apart; then of anchor and base."""
    told = {name: f"teacher {name.removeprefix('kl/')}" for name in sorted(names(rows, "kl/"))} or {"kl": "teachers"}
    return {**told, "kl_anchor": "anchor", "kl_base": "base"}


def _clipping(recipe: Recipe) -> str:
    return f"Clipped at {recipe.train.max_grad_norm:g}." if isinstance(recipe, TrainedRecipe) else ""


def steps(rows: Rows) -> Chart | None:
    """The KL at each sampling step, at the beginning, in the middle and at the end of the training."""
    found = sorted(n for n in (name.removeprefix("kl_step/") for name in names(rows, "kl_step/")) if n.isdecimal())
    index = sorted(map(int, found))
    if len(index) < 2:
        return None
    size = max(1, len(rows) // 5)
    middle = (len(rows) - size) // 2
    parts = {"first fifth": rows[:size], "middle fifth": rows[middle : middle + size], "last fifth": rows[-size:]}
    figure, plain = axes()
    values = {name: [mean(column(part, f"kl_step/{i}")) for i in index] for name, part in parts.items()}
    for number, line in enumerate(values.values()):
        plain.plot(index, line, color=SERIES[number], marker="o", markersize=3)
    every = [value for line in values.values() for value in known(line)]
    if _spans(every):
        set_log_scale(plain)
    else:
        plain.set_ylim(bottom=0)
    plain.set_xticks(index if len(index) <= 12 else index[:: -(-len(index) // 10)])
    plain.set_xlabel("sampling step (0: pure noise)")
    plain.set_ylabel("KL (nats per dimension)")
    alt = "KL by sampling step: " + "; ".join(
        f"step {i} from {a:.3g} to {b:.3g}"
        for i, a, b in zip(index, values["first fifth"], values["last fifth"], strict=True)
    )
    caption = "KL to the teacher, mean over the iterations of each fifth."
    legend = tuple(Key(name, i) for i, name in enumerate(values))
    return Chart("KL by sampling step", alt, svg(figure, "steps"), caption, legend)


def pictures_per_iteration(recipe: Recipe) -> int | None:
    """How many pictures, drawn or learned from, an iteration takes."""
    if isinstance(recipe, ColdstartRecipe):
        return recipe.sft.batch
    return recipe.train.groups * recipe.train.group_size if isinstance(recipe, TrainedRecipe) else None


def seconds(rows: Rows) -> list[float]:
    """How long each iteration took."""
    pairs = zip(column(rows, "seconds_collect"), column(rows, "seconds_learn"), strict=True)
    return [collect + learn for collect, learn in pairs]


def _throughput(recipe: Recipe, rows: Rows, x: Sequence[float]) -> Chart | None:
    count = pictures_per_iteration(recipe)
    if count is None:
        return None
    rate = [count / value if value > 0 else math.nan for value in seconds(rows)]
    caption = f"{count} pictures an iteration."
    return lines(Shape("Throughput", "pictures per second", caption, zero=True), [Series("rate", x, rate)], "rate")


def _seconds(rows: Rows, x: Sequence[float]) -> Chart | None:
    both = [Series(n, x, column(rows, f"seconds_{n}")) for n in ("collect", "learn")]
    caption = "Collect: rollouts, rewards, labels. Learn: forward, backward, optimizer."
    return lines(Shape("Time", "seconds per iteration", caption, zero=True), both, "seconds")


def together(runs: Mapping[str, Rows]) -> list[Chart]:
    """Curves of several runs on common axes, for each figure that one of them has."""
    shapes = {
        "reward": Shape("Reward", "reward", "Each run's own reward.", named=True),
        "kl": Shape("KL to the teachers", "KL (nats per dimension)", log=True, named=True),
        "kl_anchor": Shape("KL to the anchor", "KL (nats per dimension)", log=True, named=True),
        "grad_norm": Shape("Gradient norm", "L2 norm before clipping", zero=True, named=True),
    }
    found = []
    for name, shape in shapes.items():
        series = [Series(run, iterations(rows), column(rows, name)) for run, rows in runs.items()]
        chart = lines(shape, series, f"all{name}")
        found += [chart] if chart else []
    return found
