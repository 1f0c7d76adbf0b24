"""The OCR formula, and the real recognizer on rendered text."""

import numpy as np
import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.rewards.ocr.reward import OCRReward, levenshtein, score_text, target_of

PROMPT = Prompt("p", 'a sign that says "Hello World" on a wall', "ocr")


@pytest.mark.parametrize(
    ("lines", "score"),
    [
        ([("HELLO", 0.9), ("WORLD", 0.9)], 1.0),
        ([("Hello", 0.9)], 0.5),
        ([("x" * 40, 0.9)], 0.0),
        ([("Hello World", 0.0)], 0.0),
    ],
)
def test_the_lines_with_confidence_are_joined(lines, score):
    assert score_text(target_of(PROMPT), [Line(*line) for line in lines]).score == score


@pytest.mark.parametrize(("a", "b", "edits"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)])
def test_levenshtein(a, b, edits):
    assert levenshtein(a, b) == levenshtein(b, a) == edits


@pytest.mark.parametrize(
    ("text", "metadata", "target"),
    [
        ('says "one"', {"target": "two"}, "two"),
        ('a "left" door and a "right" one', {}, "left"),
        ('he says "it\'s 5 o\'clock" to "her', {}, "it's 5 o'clock"),
    ],
)
def test_the_target_is_that_of_the_metadata_or_the_first_quotation(text, metadata, target):
    assert target_of(Prompt("p", text, "ocr", metadata)) == target


def test_a_mixture_checks_the_prompts_of_its_task():
    mix = RewardMix([Weighted(OCRReward(Fixed()), task="ocr")])
    mix.check([PROMPT, Prompt("p8", "nothing to write", "geneval")])
    with pytest.raises(PromptError, match="'p9': no text in double quotes"):
        mix.check([PROMPT, Prompt("p9", "nothing to write", "ocr")])


@pytest.mark.parametrize(
    ("target", "read", "figures"),
    [
        ("Open", "OPEN", (1.0, 1.0, 0.0, 1.0)),
        ("Open 24", "open24hours", (1.0, 0.0, 5 / 6, 6 / 11)),
        ("42", "1423", (1.0, 0.0, 1.0, 0.5)),
        ("Sale", "Sole", (0.75, 0.0, 0.25, 0.75)),
        ("cafe", "", (0.0, 0.0, 1.0, 0.0)),
        ("ab", "xyzxyz", (0.0, 0.0, 3.0, 0.0)),
        ("E=mc²", "e=mc2", (0.8, 0.0, 0.2, 0.8)),
    ],
)
def test_all_figures_of_one_picture(target, read, figures):
    assert score_text(target, [Line(read, 0.9)] if read else []) == pytest.approx(figures)


@pytest.mark.parametrize("text", ["no quotes", 'an empty ""', '"  "', 'an empty "" before "more"', 'a 5" screen'])
def test_a_prompt_without_text_to_write_is_refused(text):
    with pytest.raises(PromptError, match="double quotes"):
        target_of(Prompt("p7", text, "ocr"))


class Fixed:
    name = "fixed"

    def __call__(self, images):
        return [Reading((Line("Hello World", 0.9),)), Reading(error="broken picture")]


def test_a_picture_that_cannot_be_read_is_invalid_rather_than_zero():
    result = OCRReward(Fixed())(torch.zeros(2, 3, 8, 8), [PROMPT, PROMPT])
    assert result.valid.tolist() == [True, False]
    assert float(result.total[0]) == 1.0
    assert all(column.isnan().tolist() == [False, True] for column in (result.total, *result.scores.values()))
    assert result.details[1]["error"] == "broken picture"


class TestRapidTextReader:
    @pytest.fixture(scope="class")
    def reader(self):
        pytest.importorskip("rapidocr")
        from flowopd_cli.rewards.ocr.rapidocr import RapidTextReader

        return RapidTextReader()

    @pytest.fixture(scope="class")
    def codes(self):
        from flowopd_cli.toy import prompts, scenes

        chosen = prompts.ocr("validation")[:40]
        rng = np.random.default_rng(0)
        pictures = np.stack([scenes.sample(p, rng, scenes.Habits(0, 0, 0.5)) for p in chosen])
        return chosen, torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def test_it_reads_rendered_codes(self, reader, codes):
        prompts, pictures = codes
        result = OCRReward(reader)(pictures, prompts)
        assert result.scores["exact"].mean() >= 0.97

    def test_the_batch_does_not_change_a_reading(self, reader, codes):
        pictures = codes[1][:5]
        alone = [reader(picture[None])[0].lines[0].text for picture in pictures]
        assert alone == [reading.lines[0].text for reading in reader(pictures)]

    def test_a_blank_picture_has_no_lines(self, reader):
        assert reader(torch.ones(1, 3, 32, 32))[0].lines == ()
