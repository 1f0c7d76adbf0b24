"""The reader protocol, and what both page readers share: channel order, reading order and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flowopd_cli.rewards.pictures import to_arrays

# Those of PaddleOCR 2.9.1, which read the published scores.
DROP_SCORE = 0.5  # the confidence that a line needs
ROW_PIXELS = 10.0  # lines whose tops are closer than this stand on one row
SIDE_LIMIT = 960  # a longer side is reduced to this; a shorter one is not enlarged


class Line(NamedTuple):
    """One line of text with the reader's confidence in [0, 1]."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Reading:
    """The lines of one image in reading order; ``error`` is set when the reader failed on it."""

    lines: tuple[Line, ...] = ()
    error: str | None = None


class TextReader(Protocol):
    """Reads text from images. Reports show ``name``, because scores of two readers are not comparable."""

    name: str

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The lines of each RGB image in [0, 1]."""
        ...


class PlacedLine(NamedTuple):
    """A line with the top left corner of its box, in pixels."""

    line: Line
    x: float
    y: float


def read_pages(
    images: Float[Tensor, "B 3 H W"], engine: Callable[[NDArray[np.uint8]], Iterable[PlacedLine]], drop_score: float
) -> list[Reading]:
    """Read each image with ``engine``, which gets bytes in the order B, G, R that PP-OCR was trained on.

    Lines are in reading order, without those below ``drop_score``. Where the engine raises, the reading has an
    ``error`` and the other images are unaffected.
    """
    readings = []
    for array in to_arrays(images):
        try:
            lines = list(engine(np.ascontiguousarray(array[..., ::-1])))
        except Exception as error:
            readings.append(Reading(error=describe_error(error)))
            continue
        ordered = (lines[i].line for i in reading_order([(line.x, line.y) for line in lines]))
        readings.append(Reading(tuple(line for line in ordered if line.confidence >= drop_score)))
    return readings


def reading_order(corners: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of ``(x, y)`` corners in reading order.

    From top to bottom; a corner less than ten pixels below its predecessor and left of it comes before it.
    """
    order: list[int] = []
    for i in sorted(range(len(corners)), key=lambda i: (corners[i][1], corners[i][0])):
        position = len(order)
        while position and _precedes(corners[i], corners[order[position - 1]]):
            position -= 1
        order.insert(position, i)
    return order


def _precedes(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[1] - other[1]) < ROW_PIXELS and one[0] < other[0]


def describe_error(error: Exception) -> str:
    """One line: the type of the exception and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")
