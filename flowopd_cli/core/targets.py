"""The target of a row: a weighted sum of velocities, whose weights sum to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, TypeVar

Key = TypeVar("Key")


def shares(weights: Sequence[float | str], metadata: Mapping[str, Any]) -> tuple[float, ...]:
    """The weights divided by their sum; a text names the entry of a prompt's ``metadata`` that has the weight.

    Raises :class:`ValueError`: an entry is not a number of at least 0, or all weights are 0.
    """
    numbers = [_number(weight, metadata) if isinstance(weight, str) else weight for weight in weights]
    if not (whole := sum(numbers)):
        raise ValueError(f"the weights {', '.join(map(str, weights))} are all 0: no teacher is left")
    return tuple(number / whole for number in numbers)


def _number(name: str, metadata: Mapping[str, Any]) -> float:
    number = metadata.get(name)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < inf:
        raise ValueError(f"the metadata entry {name} is {number!r}: a weight is a number, 0 or more")
    return number


def extrapolated(weights: Mapping[Key, float], base_of: Callable[[Key], Key], factor: float) -> dict[Key, float]:
    """The weights of ``v + (factor - 1) (v - v_base)``: each velocity of the sum ``v``, and its base's; none is 0.

    For Gaussians of equal variance this is the velocity of ``p^factor p_base^(1 - factor)`` (arXiv 2609.39692).
    """
    total: dict[Key, float] = {}
    for key, weight in weights.items():
        for part, share in ((key, factor), (base_of(key), 1 - factor)):
            total[part] = total.get(part, 0.0) + share * weight
    return {key: weight for key, weight in total.items() if weight}
