"""CVTG-2K's word accuracy and NED, against a transcription of its script."""

import difflib
import random
import re

import pytest
import torch
from support.recorders import Fixed

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.ocr.cvtg import CVTGReward
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.rewards.ocr.reward import levenshtein

WORDS = ("Open", "OPEN", "sale", "Sole", "24/7", "50%", "a", "Café", "R.", "Fresh  Brew", "New-Arrivals", "İ", "")


def transcribed(prompt, lines):
    """Transcription of the script: numbers of words and of correct words, and the similarity of each word."""
    expected = []
    for match in re.findall(r"'(.*?)'", prompt):
        expected.extend(match.lower().split())
    read = []
    for line in lines:
        read.extend(line.lower().split())
    read = read or [""]
    similarities = []
    for word in expected:
        closest = difflib.get_close_matches(word, read, n=1, cutoff=0)
        longer = max(len(word), len(closest[0])) + 1e-5
        similarities.append(1 - levenshtein(word, closest[0]) / longer)
    return len(expected), sum(word in read for word in expected), similarities


def test_numbers_are_those_of_the_reference():
    draw = random.Random(5)
    prompts, pages = [], []
    while len(prompts) < 1000:
        texts = draw.choices(WORDS, k=draw.randint(1, 5))
        prompt = "a shop's sign " * draw.randint(0, 1) + ", ".join(f"a sign '{text}'" for text in texts)
        if transcribed(prompt, ())[0]:
            prompts.append(prompt)
            pages.append(draw.choices([*texts, *WORDS, "saIe now"], k=draw.randint(0, 6)))
    reward = CVTGReward(Fixed(*(Reading(tuple(Line(line, 0.9) for line in page)) for page in pages)))
    result = reward(torch.zeros(1000, 3, 8, 8), [Prompt(str(i), text, "cvtg-2k") for i, text in enumerate(prompts)])
    expected, correct, similarities = zip(*map(transcribed, prompts, pages), strict=True)
    assert result.scores["expected"].tolist() == list(expected)
    assert result.scores["correct"].tolist() == list(correct)
    means = [sum(row) / len(row) for row in similarities]
    assert result.scores["ned"].tolist() == torch.tensor(means).tolist()
    assert result.total.tolist() == (result.scores["correct"] / result.scores["expected"]).tolist()


def test_a_failed_reader_makes_a_picture_invalid_and_prompts_without_quotation_are_refused():
    mix = RewardMix([Weighted(CVTGReward(Fixed(Reading(error="broken"), Reading((Line("OPEN", 0.9),)))))])
    prompts = [Prompt("a", "a sign 'Open'", "t"), Prompt("b", "a sign 'Open Now'", "t")]
    result = mix(torch.zeros(2, 3, 8, 8), prompts)
    assert result.valid.tolist() == [False, True]
    assert result.total[1] == 0.5
    with pytest.raises(PromptError, match="'c': no text in single quotes"):
        mix.check([Prompt("c", 'a sign "Open"', "t")])
