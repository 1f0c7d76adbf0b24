"""Figures as inline SVG whose colors a style sheet chooses: a tree of few, known elements that the page writes.

Every text and attribute is escaped where the page writes it; what is not listed here is left out.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

# Okabe and Ito's colors, which the color-blind tell apart; the style sheet has lighter ones for a dark page.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, SOFT, LINE = "#101112", "#202122", "#303132"
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}
MARKS = {"●": "o", "■": "s", "◆": "D", "▲": "^", "▼": "v", "✚": "P", "★": "*"}
WIDTH, HEIGHT = 4.3, 2.45  # inches of 72 units: at the width of a phone a unit is a pixel and more
_VARIABLES = {color: f"var(--c{i})" for i, color in enumerate(SERIES)}
_VARIABLES |= {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
_TAGS = {"svg", "g", "path", "use", "text", "defs", "clipPath", "rect", "tspan"}
_ATTRIBUTES = {"viewBox", "d", "style", "x", "y", "transform", "clip-path", "width", "height", "id", "href"}
_SIZED = re.compile(r"font: (?:[a-z]+ )?([\d.]+px)[^;]*")
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Node:
    """One element: its name, its attributes, its text, what it holds."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Key:
    """What a color stands for: the number of the color, the line (``solid``, ``dashed``, ``dotted``) or the mark."""

    name: str
    color: int
    line: str = "solid"
    mark: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure of the page: what it shows (``alt`` for those who cannot see it), the drawing, a caption, the keys."""

    title: str
    alt: str
    drawing: Node
    caption: str = ""
    legend: tuple[Key, ...] = ()


def axes(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure of one pair of axes in the style of the page; the plotting library is imported here."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its font cache nobody needs to hear
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        plain = figure.subplots()
        plain.set_facecolor("none")
    return figure, plain


def logarithmic(plain: Any) -> None:
    """A logarithmic y-axis whose ticks are plain numbers."""
    plain.set_yscale("log")
    plain.yaxis.set_major_formatter("{x:g}")
    plain.yaxis.set_minor_formatter("")


def drawn(figure: Any, name: str) -> Node:
    """The figure as elements; ``name`` keeps its identifiers apart from those of the page's other figures."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    return next(_nodes(root, f"{re.sub(r'[^a-z0-9]', '', name.lower())}-"))


def _nodes(element: Any, prefix: str) -> Iterator[Node]:
    """The element if it is a known one, else nothing; a group that says nothing is what it holds."""
    tag = str(element.tag).rpartition("}")[2]
    if tag not in _TAGS:
        return
    children = tuple(node for child in element for node in _nodes(child, prefix))
    attributes = dict(_attributes(tag, element.attrib, prefix))
    if tag == "g" and not attributes:
        yield from children
    elif tag in {"text", "tspan", "path", "use", "rect"} or children:
        yield Node(tag, attributes, (element.text or "").strip() if tag in {"text", "tspan"} else "", children)


def _attributes(tag: str, found: dict[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        name = key.rpartition("}")[2]
        unwanted = tag == "svg" and name in {"width", "height"}
        if name not in _ATTRIBUTES or unwanted or (name == "id" and tag not in {"clipPath", "path"}):
            continue
        if name == "id":
            yield name, prefix + value
        elif name == "href":
            yield name, f"#{prefix}{value.removeprefix('#')}"
        elif name == "clip-path":
            yield name, value.replace("url(#", f"url(#{prefix}")
        else:
            yield name, _themed(value) if name == "style" else value


def _themed(style: str) -> str:
    """A style with variables for the colors, and the page's font in place of the one that was measured."""
    style = _SIZED.sub(r"font-size: \1", style)
    for color, variable in _VARIABLES.items():
        style = style.replace(color, variable)
    return style
