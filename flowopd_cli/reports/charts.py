"""Charts as SVG by matplotlib, with colors from CSS variables of the page."""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

# Okabe and Ito's colors for the color-blind; the style sheet has lighter ones for a dark page.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, SOFT, LINE = "#101112", "#202122", "#303132"
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}
MARKS = {"●": "o", "■": "s", "◆": "D", "▲": "^", "▼": "v", "✚": "P", "★": "*"}
WIDTH, HEIGHT = 4.3, 2.45  # inches of 72 units; on a phone a unit is at least a pixel
_VARIABLES = {color: f"c{i}" for i, color in enumerate(SERIES)} | {INK: "ink", SOFT: "soft", LINE: "line"}
_STYLE = Path(__file__).with_name("report.mplstyle")


@dataclass(frozen=True)
class Key:
    """A row of a legend: the number of its color, and the line (``solid``, ``dashed``, ``dotted``) or the mark."""

    name: str
    color: int
    line: str = "solid"
    mark: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of the page; ``alt`` is its text alternative."""

    title: str
    alt: str
    drawing: Markup
    caption: str = ""
    legend: tuple[Key, ...] = ()


def axes(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure with one pair of axes in the style of the page; matplotlib is imported here."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports its font cache
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        ax.set_facecolor("none")
    return figure, ax


def svg(figure: Any, name: str) -> Markup:
    """The figure as an SVG element; ``name`` makes its identifiers unique on the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}, fname=_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: (?:[a-z]+ )?([\d.]+px)[^;\"]*", r"font-size: \1", text)  # in the font of the page
    text = re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", text)
    return Markup(text)  # noqa: S704 (matplotlib escapes every text)
