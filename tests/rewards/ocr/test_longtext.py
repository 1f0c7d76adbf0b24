"""LongText-Bench's text accuracy, against a transcription of its script, and over readers."""

import random
import re
from collections import Counter

import pytest
import torch
from support.recorders import Fixed

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.ocr.longtext import LongTextReward, expected_words, missing_words
from flowopd_cli.rewards.ocr.reading import Line, Reading

PIECES = (
    *(
        "OPEN",
        "open",
        "Café",
        "ÀÇ",
        "2",
        "a-b",
        "it's",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        ".",
        ",",
        "—",
        "(",
        "!",
        "Ñ",
        "İ",
        "ß",
    ),
    *("每日", "烘", "，", "。", "“", "1998", "龥", "龦", "\u3000", "ⅷ", "é", "e\u0301", "addCriterion"),
    *("No text recognized.", "No text recognized", "text", "No"),
)


def transcribed(texts, read, language):
    """Transcription of X-Omni's cleaning, preprocessing and matching: the numbers of matched and of expected units."""
    letters = "àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"

    def prepared(text):
        kept = [c for c in text if "\u4e00" <= c <= "\u9fa5" or (c.isascii() and c.isalnum()) or c in letters]
        if language == "zh":
            return kept
        spaced = "".join(c if c in kept else " " if re.match(r"\s", c) else "" for c in text)
        return re.sub(r" +", " ", spaced).strip().lower().split()

    cleaned = read
    for keyword in ("addCriterion", "No text recognized."):  # each starts from the whole text: only the last counts
        cleaned = read.replace(keyword, "").replace(f"\n{keyword}", "").replace(f"{keyword}\n", "")
    expected, found = prepared(" ".join(texts)), prepared(cleaned)
    return sum((Counter(expected) & Counter(found)).values()), len(expected)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers_are_those_of_the_reference(language):
    draw = random.Random(7)
    compared = 0
    while compared < 1500:
        texts, read = (["".join(draw.choices(PIECES, k=draw.randint(1, 9))) for _ in range(3)] for _ in range(2))
        read = draw.choice(["", "\n", " "]).join(draw.sample(texts, 2) + read)
        matched, total = transcribed(texts, read, language)
        if total:
            words, _ = expected_words(Prompt("p", "x", "t", {"text": texts, "language": language}))
            assert (len(words) - len(missing_words(words, read, language)), len(words)) == (matched, total)
            compared += 1


def page(*lines):
    return Reading(tuple(Line(line, 0.9) for line in lines))


def test_a_word_counts_as_often_as_it_is_to_be_written_and_lines_are_apart():
    reward = LongTextReward(Fixed(page("Sale: sale,", "now 50%"), page("中央公园", "2公"), Reading(error="broken")))
    prompts = [
        Prompt("a", "x", "longtext-en", {"text": ["SALE sale", "sale now!"]}),
        Prompt("b", "x", "longtext-zh", {"text": ["中央公园 - 2公里"], "language": "zh"}),
        Prompt("c", "x", "longtext-en", {"text": ["one"]}),
    ]
    result = reward(torch.zeros(3, 3, 8, 8), prompts)
    assert result.scores["matched"][:2].tolist() == [3, 6]
    assert result.scores["expected"][:2].tolist() == [4, 7]
    assert result.total[:2].tolist() == pytest.approx([3 / 4, 6 / 7])
    assert result.valid.tolist() == [True, True, False]
    assert result.total[2].isnan()
    assert [detail.get("missing") for detail in result.details] == [["sale"], ["里"], None]
    assert not reward.info.exact
    assert reward.info.note == "read by fixed, the reference by Qwen2.5-VL-7B"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "needs the texts to render as a list"),
        ({"text": "one"}, "needs the texts to render as a list"),
        ({"text": []}, "needs the texts to render as a list"),
        ({"text": ["one", 2]}, "needs the texts to render as a list"),
        ({"text": ["—", "!"]}, "has no word to count"),
        ({"text": ["one"], "language": "de"}, "is en or zh, not 'de'"),
    ],
)
def test_prompts_without_texts_to_write_are_refused(metadata, words):
    with pytest.raises(PromptError, match=f"prompt 'p': .*{words}"):
        LongTextReward(Fixed()).check([Prompt("p", "x", "t", metadata)])
