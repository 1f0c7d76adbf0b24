"""The comparison of the toy teachers' algorithms: ``python docs/_ext/teachers.py RUNS docs/images/teachers.svg``.

RUNS has one run for each objective, algorithm and seed, ``geneval-nft-0`` for example, trained with
``train.watch_every``. A curve is the watched reward over the CPU-seconds of training: iterations times the cost of one.
COSTS, an optional third argument, is a JSON file of these costs, ``{"geneval-nft": 1.6}``, measured on idle cores;
without it the seconds that each run logged count. The table is printed.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

OBJECTIVES, ALGORITHMS = ("geneval", "ocr", "quality"), ("grpo", "nft", "awm")
COLORS = {"grpo": "#7f7f7f", "nft": "#0072b2", "awm": "#d55e00"}
SHARE = 0.9  # of the better algorithm's final gain
Curve = list[tuple[float, float]]  # CPU-seconds and reward


def curve(run: Path, objective: str, cost: float | None) -> Curve:
    """The watched reward over the seconds of training."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    spent, points = 0.0, []
    for row in rows:
        spent += (row.get("seconds_collect", 0) + row.get("seconds_learn", 0)) if cost is None else 0
        if (reward := row.get(f"watch/reward/{objective}")) is not None:
            points.append((spent if cost is None else cost * row["iteration"], reward))
    return points


def curves(runs: Path, costs: dict[str, float]) -> dict[tuple[str, str], list[Curve]]:
    """The curves of every objective and algorithm, one for each seed."""
    collected = defaultdict(list)
    for run in sorted(runs.glob("*-*-*")):
        objective, algorithm, _ = run.name.rsplit("-", 2)
        if algorithm in ALGORITHMS:
            collected[objective, algorithm].append(curve(run, objective, costs.get(f"{objective}-{algorithm}")))
    return collected


def mean(lines: list[Curve]) -> Curve:
    """The mean over seeds, point by point."""
    return [(fmean(x for x, _ in points), fmean(y for _, y in points)) for points in zip(*lines, strict=True)]


def pace(line: Curve, goal: float) -> tuple[float, float]:
    """Seconds until the goal, or of the best point if it was not reached, and the gain there."""
    base = line[0][1]
    reached = next(((x, y) for x, y in line if y >= goal), max(line, key=lambda point: point[1]))
    return reached[0], reached[1] - base


def table(lines: dict[tuple[str, str], Curve]) -> str:
    """Gain, seconds and gain per 100 CPU-seconds of each algorithm, and its ratio to GRPO's."""
    rows = [
        "| reward | algorithm | gain | CPU-seconds | gain per 100 CPU-seconds | against GRPO |",
        "|---|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        shown = {name: lines[objective, name] for name in ALGORITHMS if (objective, name) in lines}
        if not shown:
            continue
        best = max(line[-1][1] for line in shown.values())
        goal = next(iter(shown.values()))[0][1] * (1 - SHARE) + SHARE * best
        rates = {name: (*pace(line, goal), line) for name, line in shown.items()}
        for name, (seconds, gain, _) in rates.items():
            rate, slow = gain / seconds, rates["grpo"][1] / rates["grpo"][0]
            rows.append(
                f"| {objective} | {name} | {gain:.3f} | {seconds:.0f} | {100 * rate:.3f} | {rate / slow:.1f} × |"
            )
    return "\n".join(rows)


def chart(seeds: dict[tuple[str, str], list[Curve]]) -> Figure:
    """One panel an objective: thin lines are seeds, thick ones their means."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for ax, objective in zip(figure.subplots(1, 3), OBJECTIVES, strict=True):
        for name in ALGORITHMS:
            for line in seeds.get((objective, name), ()):
                ax.plot(*zip(*line, strict=True), color=COLORS[name], linewidth=0.6, alpha=0.5)
            if (objective, name) in seeds:
                ax.plot(*zip(*mean(seeds[objective, name]), strict=True), color=COLORS[name], label=name.upper())
        ax.set(title=objective, xlabel="CPU-seconds of training", ylabel="reward on validation prompts")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    cost_file = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    found = curves(Path(sys.argv[1]), json.loads(cost_file.read_text()) if cost_file else {})
    chart(found).savefig(sys.argv[2], dpi=110)
    print(table({key: mean(lines) for key, lines in found.items()}))
