"""The wordings of answers and their means, against the rules of the reference's script, transcribed here."""

import random

import pytest
from scipy.stats import gmean

from flowopd_cli.rewards.geneval2.rules import NUMBERS, arithmetic_mean, geometric_mean, wordings


def reference_answers(question, answer):
    """Transcribed: what ``evaluation.py`` of GenEval 2 takes as the answer, in its order."""
    if not question.startswith("How many"):
        return ["Yes", "yes", " yes", " Yes"]
    numeric = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"}
    digits = {**numeric, "nine": "9", "ten": "10"}.get(answer, "other")
    return [answer, answer.capitalize(), " " + answer, " " + answer.capitalize(), digits, " " + digits]


def test_the_wordings_are_the_reference_s():
    draw = random.Random(0)
    starts = ("How many", "how many", "Are the", "Is the", "")
    words = (*NUMBERS, "Yes", "No", "eleven", "Two", "a dozen")
    for _ in range(2000):
        question, answer = f"{draw.choice(starts)} pigs are there?", draw.choice(words)
        assert list(wordings(question, answer)) == reference_answers(question, answer)


def test_the_means_are_the_reference_s():
    draw = random.Random(1)
    for _ in range(1000):
        row = [draw.random() ** draw.choice((1, 30)) for _ in range(draw.randint(1, 11))]
        assert arithmetic_mean(row) == sum(row) / len(row)
        assert geometric_mean(row) == pytest.approx(gmean(row), rel=1e-12, abs=0)
    assert geometric_mean([0.0, 0.9]) == 0.0
