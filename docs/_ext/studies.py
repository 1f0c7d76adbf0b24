"""Tables and plots of docs/studies.md: ``python docs/_ext/studies.py docs/studies.md STUDY…``.

Each STUDY is the folder of a finished ``flowopd study``, called as its recipe. Its table replaces what stands between
``<!-- study: NAME -->`` and ``<!-- /study -->`` on the page; its plot and its rows, as CSV, go to the folder
``studies`` beside the page.
"""

import json
import re
import sys
from pathlib import Path
from statistics import fmean

import yaml
from matplotlib.figure import Figure

from flowopd_cli.reports.study import Group, Row, groups_of, mean_and_error, paired, reference_of
from flowopd_cli.reports.table import Cell, as_csv

METRICS = ("geneval", "ocr", "preference", "quality", "average")
COLOR, FAINT = "#0072b2", "#7f7f7f"


def row(figures: dict, axes: list[str]) -> Row:
    """A row of ``results.json``."""
    return Row(
        evaluation=figures["evaluation"],
        values={axis: figures[axis] for axis in axes if figures[axis] is not None},
        seed=figures["seed"],
        guidance=figures["eval.guidance"],
        metrics={metric: figures[metric] for metric in METRICS},
        cpu_seconds={},
        cost=figures["cpu_seconds"],
        run=figures["run"],
        protocol="",
    )


def table(groups: list[Group], reference: Group) -> str:
    """Means over seeds, the paired difference of the average to the reference, and the cost of a cell."""
    lines = [
        f"| cell | {' | '.join(METRICS)} | average, less the reference | CPU-seconds |",
        "|---" * (len(METRICS) + 3) + "|",
    ]
    for group in groups:
        cells = [cell for metric in METRICS if (cell := group.cell(metric))]
        columns = [f"{cell.text} {cell.error}".strip() for cell in cells]
        mean, error = paired(group.by_seed("average"), reference.by_seed("average"))
        columns.append("reference" if group is reference else f"{mean:+.3f} {Cell(mean, error).error}".strip())
        columns.append(f"{fmean(member.cost for member in group.rows if member.cost is not None):,.0f}")
        lines.append(f"| {group.label} | {' | '.join(columns)} |")
    return "\n".join(lines)


def plot(groups: list[Group]) -> Figure:
    """A panel for each metric and a row for each cell: the mean with its error, and each seed faintly."""
    figure = Figure(figsize=(10, 0.9 + 0.24 * len(groups)), layout="constrained")
    for ax, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
        for place, group in enumerate(groups):
            values = list(group.by_seed(metric).values())
            mean, error = mean_and_error(values)
            ax.plot(values, [place] * len(values), "|", color=FAINT, markersize=7)
            ax.errorbar(mean, place, xerr=error or 0.0, fmt="o", color=COLOR, markersize=4)
        ax.set_title(metric, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.grid(axis="x", linewidth=0.4)
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.axes[0].set_yticks(range(len(groups)), [group.label for group in groups])
    figure.axes[0].invert_yaxis()
    return figure


def main(page: Path, studies: list[Path]) -> None:
    """Fill the page with the results of the studies."""
    content = page.read_text(encoding="utf-8")
    folder = page.parent / "studies"
    folder.mkdir(exist_ok=True)
    for study in studies:
        spec = yaml.safe_load((study / "study.yaml").read_text(encoding="utf-8"))
        results = json.loads((study / "results.json").read_text(encoding="utf-8"))
        groups = groups_of([row(figures, list(spec["axes"])) for figures in results])
        rows = table(groups, reference_of(groups, spec["reference"]))
        block = rf"(<!-- study: {study.name} -->\n).*?(<!-- /study -->)"
        content = re.sub(block, lambda match, rows=rows: f"{match[1]}{rows}\n{match[2]}", content, flags=re.DOTALL)
        plot(groups).savefig(folder / f"{study.name}.png", dpi=90)
        tidy = [{key: value for key, value in figures.items() if key != "run"} for figures in results]
        (folder / f"{study.name}.csv").write_text(as_csv(tidy), encoding="utf-8")
    page.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
