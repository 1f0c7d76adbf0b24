"""The rule that ends a training early, a function of its logged rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Literal


@dataclass
class StopRule:
    """Ends a training after ``patience`` bad values of a metric in a row; rows without the metric do not count.

    A value is bad if it is beyond a bound, or without bounds if it does not improve on the best before it; a value that
    is not a finite number is always bad. ``reason`` is set when the rule ends the training.
    """

    metric: str
    patience: int
    below: float | None = None
    above: float | None = None
    direction: Literal["max", "min"] = "max"
    reason: str | None = None
    _values: list[tuple[int, bool]] = field(default_factory=list)
    _best: float = -inf

    @property
    def bounded(self) -> bool:
        """Whether it has a bound."""
        return self.below is not None or self.above is not None

    def observe(self, row: Mapping[str, float | None]) -> None:
        """Take the next row of the metrics, as logged or as read again."""
        if self.reason is not None or self.metric not in row:
            return
        value, iteration = row[self.metric], int(row["iteration"] or 0)
        if self.bounded and iteration == 0:  # the baseline of a watch: nothing is trained yet
            return
        number = float(value) if value is not None and isfinite(value) else None
        self._values.append((iteration, number is not None and self._is_good(number)))
        if len(self._values) >= self.patience and not any(good for _, good in self._values[-self.patience :]):
            last = "not a number" if number is None else f"{number:.4g}"
            self.reason = f"train.stop ends the training: {self.metric} {self._fault()}, is {last}"

    def allows(self, step: int) -> bool:
        """Whether the metric was within the bounds at iteration ``step``; if not logged then, just before and after."""
        before = [good for iteration, good in self._values if iteration <= step][-1:]
        after = [good for iteration, good in self._values if iteration >= step][:1]
        return not self.bounded or (bool(after) and all((*before, *after)))

    def _is_good(self, value: float) -> bool:
        if self.bounded:
            return (-inf if self.below is None else self.below) <= value <= (inf if self.above is None else self.above)
        sign = 1 if self.direction == "max" else -1
        better, self._best = sign * value > self._best, max(self._best, sign * value)
        return better

    def _fault(self) -> str:
        times = f"for {self.patience} values in a row"
        bounds = [("below", self.below), ("above", self.above)]
        if self.bounded:
            return f"was {' or '.join(f'{name} {bound:g}' for name, bound in bounds if bound is not None)} {times}"
        best = self._best if self.direction == "max" else -self._best
        return f"did not improve on {best:.4g} {times}"
