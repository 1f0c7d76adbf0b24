"""The sentence on a model: each outcome, and differences with errors that are computed by hand."""

import math

import pytest

from flowopd_cli.reports.verdict import EQUALS, FALLS_SHORT, SURPASSES, difference, outcome, verdict


def results(geneval, ocr, stderr=0.01):
    means = {"geneval": geneval, "ocr": ocr}
    return {suite: {"mean": mean, "stderr": stderr} for suite, mean in means.items()}


@pytest.mark.parametrize(
    ("mean", "error", "word"),
    [
        (0.02, 0.01, SURPASSES),
        (0.01, 0.01, EQUALS),
        (0.0, 0.0, EQUALS),
        (-0.01, 0.01, EQUALS),
        (-0.02, 0.01, FALLS_SHORT),
        (1e-9, None, SURPASSES),
        (0.0, None, EQUALS),
    ],
)
def test_a_difference_within_one_standard_error_is_equality(mean, error, word):
    assert outcome(mean, error) == word


def test_the_error_of_a_difference():
    one, other = results(0.9, 0.8, stderr=0.03), results(0.7, 0.9, stderr=0.04)
    assert difference(one, other, "ocr") == pytest.approx((-0.1, 0.05))
    assert difference(one, other, "average") == pytest.approx((0.05, 0.05 / math.sqrt(2)))
    one["ocr"]["stderr"] = None
    assert difference(one, other, "ocr")[1] is None
    assert difference(one, other, "average")[1] is None


MODELS = {"student": results(0.9, 0.8), "a": results(0.8, 0.8), "b": results(0.9, 0.81), "c": results(0.95, 0.85)}


def test_every_outcome_is_in_one_sentence():
    rivals = [("c", "average"), ("b", "ocr"), ("a", "geneval"), ("a", "average"), ("unknown", "ocr")]
    assert verdict("student", rivals, MODELS) == (
        "The student surpasses a on geneval (+0.100 ± 0.014) and a on average (+0.050 ± 0.010); equals b on ocr "
        "(-0.010 ± 0.014); but falls short of c on average (-0.050 ± 0.010)."
    )


@pytest.mark.parametrize(
    ("rivals", "sentence"),
    [
        ([("c", "ocr")], "The student falls short of c on ocr (-0.050 ± 0.014)."),
        ([("a", "geneval")], "The student surpasses a on geneval (+0.100 ± 0.014)."),
        (
            [("a", "ocr"), ("b", "geneval")],
            "The student equals a on ocr (+0.000 ± 0.014) and b on geneval (+0.000 ± 0.014).",
        ),
        ([], ""),
        ([("unknown", "ocr")], ""),
    ],
)
def test_a_sentence_has_only_what_there_is(rivals, sentence):
    assert verdict("student", rivals, MODELS) == sentence
    assert verdict("unknown", rivals, MODELS) == ""
