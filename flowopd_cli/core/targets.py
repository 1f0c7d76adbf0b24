"""The target of a row: a weighted sum of velocities, whose weights sum to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError

LARGEST = 1e300  # weight, so that sums of weights are finite
Key = TypeVar("Key")


def shares(weights: Sequence[float | str], prompt: Prompt) -> tuple[float, ...]:
    """The weights divided by their sum; a text names the entry of the prompt's metadata that has the weight.

    Raises :class:`PromptError`: an entry is not a number from 0 to 1e300, or all weights are 0.
    """
    numbers = [_number(weight, prompt) if isinstance(weight, str) else weight for weight in weights]
    if not (whole := sum(numbers)):
        listed = ", ".join(map(str, weights))
        raise PromptError(f"{_name(prompt)}: the weights {listed} are all 0: no teacher is left")
    return tuple(number / whole for number in numbers)


def _number(key: str, prompt: Prompt) -> float:
    number = prompt.metadata.get(key)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= LARGEST:
        text = repr(number)[:80] if key in prompt.metadata else "missing"
        raise PromptError(f"{_name(prompt)}: the metadata entry {key} is {text}: a weight is a number, 0 or more")
    return number


def _name(prompt: Prompt) -> str:
    return f"prompt {prompt.id!r} of task {prompt.task!r}"


def extrapolated(weights: Mapping[Key, float], base_of: Callable[[Key], Key], factor: float) -> dict[Key, float]:
    """The weights of ``v + (factor - 1) (v - v_base)``: each velocity of the sum ``v``, and its base's; none is 0.

    For Gaussians of equal variance this is the velocity of ``p^factor p_base^(1 - factor)`` (arXiv 2609.39692).
    """
    total: dict[Key, float] = {}
    for key, weight in weights.items():
        for part, share in ((key, factor), (base_of(key), 1 - factor)):
            total[part] = total.get(part, 0.0) + share * weight
    return {key: weight for key, weight in total.items() if weight}
