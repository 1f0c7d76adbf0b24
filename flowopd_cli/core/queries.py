"""Which trained steps of a trajectory are queried: a law of chances. No torch here: ``--dry-run`` counts with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil


@dataclass(frozen=True)
class Query:
    """Draws ``steps`` of a trajectory's trained steps (``None``: all), by a Beta law along it (``None``: uniformly).

    ``unbiased`` weights a step by the inverse of its chance, so that the mean over the drawn ones is on average that
    over all; otherwise the law is itself the weight.
    """

    steps: int | None = None
    beta: tuple[float, float] | None = None
    unbiased: bool = True

    def chances(self, count: int) -> tuple[float, ...]:
        """The chance of each of ``count`` steps to be drawn; their sum is the number that is drawn.

        Proportional to the density ``x^(a - 1) (1 - x)^(b - 1)`` at the middle ``x`` of the step's share of the
        trajectory, 0 being noise and 1 the picture, but at most 1.
        """
        steps = count if self.steps is None else min(self.steps, count)
        a, b = self.beta or (1.0, 1.0)
        places = [(index + 0.5) / count for index in range(count)]
        density = [x ** (a - 1) * (1 - x) ** (b - 1) for x in places]
        certain: set[int] = set()
        while True:
            rest = sum(density[i] for i in range(count) if i not in certain)
            scale = (steps - len(certain)) / rest if rest else 0.0
            more = {i for i in range(count) if i not in certain and scale * density[i] >= 1}
            if not more:
                return tuple(1.0 if i in certain else scale * density[i] for i in range(count))
            certain |= more

    def weights(self, count: int) -> tuple[float, ...]:
        """The weight of each step's loss where it is drawn; 1 if its chance is 0."""
        chances = self.chances(count)
        mean = sum(chances) / count
        return tuple(mean / chance if self.unbiased and self.beta and chance else 1.0 for chance in chances)


def draw_systematic(chances: tuple[float, ...], offset: float) -> tuple[int, ...]:
    """The indices whose share of ``[0, sum of chances)`` has one of the points ``offset, offset + 1, ...``.

    Systematic sampling: for an ``offset`` uniform in [0, 1) each index has its chance, and their number is constant.
    """
    count = round(sum(chances))
    edges = [*(min(edge, count) for edge in accumulate(chances, initial=0.0))]
    edges[-1] = count
    points = [max(0, ceil(edge - offset)) for edge in edges]
    return tuple(i for i in range(len(chances)) if points[i + 1] > points[i])


def mean_last(query: Query, count: int) -> float:
    """The expected index of the last drawn step among ``count``."""
    chances = query.chances(count)
    size = round(sum(chances))
    if query.beta is None:
        return size * (count + 1) / (size + 1) - 1
    edges = [*accumulate(chances, initial=0.0)]
    return sum(i * max(0.0, edges[i + 1] - max(edges[i], size - 1)) for i in range(count))
