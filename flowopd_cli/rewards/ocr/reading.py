"""The reader protocol, and the base of page readers: channel order, reading order and thresholds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flowopd_cli.rewards.pictures import to_arrays

# Those of PaddleOCR 2.9.1, which read the published scores.
DROP_SCORE = 0.5  # the confidence that a line needs
ROW_PIXELS = 10.0  # lines whose tops are closer than this are on one row
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


class PageReader(ABC):
    """A reader of pages with several lines.

    An image on which the engine fails has a reading with an ``error``; the other images are unaffected.
    """

    name: str

    def __init__(self, drop_score: float = DROP_SCORE) -> None:
        """``drop_score`` is the confidence that a line needs."""
        self._drop_score, self._lock = drop_score, Lock()

    @abstractmethod
    def page(self, bgr: NDArray[np.uint8]) -> Iterable[tuple[str, float, Any]]:
        """Text, confidence and corners ``(x, y)`` (top left first) of each line; bytes in PP-OCR's order B, G, R."""

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The lines of each RGB image in [0, 1]."""
        with self._lock:
            return [self._read(np.ascontiguousarray(array[..., ::-1])) for array in to_arrays(images)]

    def _read(self, bgr: NDArray[np.uint8]) -> Reading:
        try:
            rows = list(self.page(bgr))
        except Exception as error:
            return Reading(error=describe_error(error))
        order = reading_order([(float(box[0][0]), float(box[0][1])) for _, _, box in rows])
        lines = (Line(rows[i][0], float(rows[i][1])) for i in order)
        return Reading(tuple(line for line in lines if line.confidence >= self._drop_score))


def reading_order(corners: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of ``(x, y)`` corners in reading order.

    From top to bottom; a corner less than ten pixels below its predecessor and left of it comes before it.
    """
    order: list[int] = []
    for i in sorted(range(len(corners)), key=lambda i: (corners[i][1], corners[i][0])):
        (x, y), position = corners[i], len(order)
        while position and x < corners[order[position - 1]][0] and y - corners[order[position - 1]][1] < ROW_PIXELS:
            position -= 1
        order.insert(position, i)
    return order


def describe_error(error: Exception) -> str:
    """One line: the type of the exception and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")
