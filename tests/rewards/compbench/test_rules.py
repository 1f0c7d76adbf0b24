"""Questions, attribute scores and complex prompts, by hand."""

import pytest

from flowopd_cli.rewards.compbench import rules
from flowopd_cli.rewards.compbench.phrases import Token


def test_questions_of_a_prompt():
    assert rules.questions(["a red hat", "top", "the left", "The left"]) == ["a red hat?", "The left?"]
    assert len(rules.questions([f"thing {i}" for i in range(12)])) == 8
    assert rules.questions([]) == []


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ('The "Red" Hat?', "the red hat?"),
        ("Rubik's cube; (new) #1: *now* ~!.?", "rubik's cube new 1 now ?"),
        ("trailing.  ", "trailing"),
        ("", ""),
        (" ".join(["w"] * 60) + "?", " ".join(["w"] * 50)),
    ],
)
def test_questions_are_cleaned(raw, clean):
    assert rules.clean_question(raw) == clean


def test_attribute_scores_are_products_of_rounded_answers():
    assert rules.attribute_score([]) == "1.0000"
    assert rules.attribute_score([0.5, 0.5, 0.5]) == "0.1250"
    assert rules.attribute_score([0.99995, 0.8]) == "0.8000"  # rounded up to 1.0000
    assert rules.attribute_score([0.00004, 0.9]) == "0.0000"
    assert rules.attribute_score([0.123449, 1.0]) == "0.1234"


def test_clip_reads_complex_prompts_without_adjectives():
    tokens = [Token(*pair.split("/")) for pair in ["The/DET", "red/ADJ", "hat/NOUN", "fell/VERB", "./PUNCT"]]
    assert rules.without_adjectives(tokens) == "The hat fell ."


def test_three_in_one():
    scores = {"attribute": 0.6, "spatial": 0.3, "action": 0.9}
    assert rules.three_in_one("spatial", scores) == pytest.approx(0.45)
    assert rules.three_in_one("action", scores) == pytest.approx(0.75)
    assert rules.three_in_one("both", scores) == pytest.approx(0.6)


def test_kinds_of_complex_prompts():
    prompts = ["the cup is HERE. And more.", "The dog runs.", "The dog runs home."]
    assert rules.kinds_of(prompts, ["The Cup is here.\n"], ["the dog runs"]) == ["spatial", "action", "both"]
