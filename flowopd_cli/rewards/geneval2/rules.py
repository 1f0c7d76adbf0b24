"""Soft-TIFA: the wordings of a right answer, and the means of their probabilities. No torch here.

Source: Kamath et al. 2025, arXiv 2512.16853, and its scripts ``evaluation.py`` and ``soft_tifa_analysis.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

QUESTION = "{} Answer in one word."
YES = ("Yes", "yes", " yes", " Yes")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS, start=1)}


def wordings(question: str, answer: str) -> tuple[str, ...]:
    """The texts that count as the answer, in the order in which the reference adds up their probabilities.

    A number counts as a word and in digits; above ten the reference has ``other`` in place of the digits. Every other
    question is one of yes or no, and yes is right, whatever ``answer`` says.
    """
    if not question.startswith("How many"):
        return YES
    word, capital, digits = answer, answer.capitalize(), DIGITS.get(answer, "other")
    return (word, capital, f" {word}", f" {capital}", digits, f" {digits}")


def arithmetic_mean(probabilities: Sequence[float]) -> float:
    """Soft-TIFA AM of one picture, from its questions' probabilities."""
    return sum(probabilities) / len(probabilities)


def geometric_mean(probabilities: Sequence[float]) -> float:
    """Soft-TIFA GM of one picture: 0 if one of the probabilities is."""
    if min(probabilities) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, probabilities)) / len(probabilities))
