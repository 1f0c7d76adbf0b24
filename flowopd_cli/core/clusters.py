"""Means of scored pictures and their standard errors, with pictures clustered by prompt. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Pairs = Sequence[tuple[float, float]]  # values with their positive weights


def weighted_mean(pairs: Pairs) -> tuple[float, float]:
    """The weighted mean of the values, and the sum of the weights."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total, total


def clustered_mean(
    tags: Mapping[str, Mapping[str, Pairs]], *, weighted: bool = False
) -> tuple[dict[str, float], float, float]:
    """The mean of each tag over its pictures, their unweighted mean, and its standard error.

    ``tags`` has the pictures of each prompt of each tag. Pictures of one prompt are not independent, so the error of a
    tag is the standard error of the prompts' means, NaN for a single prompt. If the pictures are ``weighted``, a prompt
    counts in the error by the weights of its pictures, else all prompts count alike.
    """
    means: dict[str, float] = {}
    variances: list[float] = []
    for tag, prompts in tags.items():
        means[tag] = weighted_mean([pair for pairs in prompts.values() for pair in pairs])[0]
        centres = [weighted_mean(pairs) for pairs in prompts.values()]
        centres = centres if weighted else [(centre, 1.0) for centre, _ in centres]
        centre, total = weighted_mean(centres)
        squares = sum((weight / total * (value - centre)) ** 2 for value, weight in centres)
        variances.append(squares * len(centres) / (len(centres) - 1) if len(centres) > 1 else math.nan)
    return means, sum(means.values()) / len(means), math.sqrt(sum(variances)) / len(means)
