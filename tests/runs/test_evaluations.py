"""Which evaluations of a run and of its base a card reports together."""

import json
import math
from pathlib import Path

import pytest
from support.reported import evaluation, policy_run

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.evaluations import evaluations, protocol, results
from flowopd_cli.runs.manifest import Base
from flowopd_cli.runs.run import RunDir

JUDGE = {"reward": "ocr", "engine": "reader-1", "weights": {"model": "sha256:1", "dtype": "float32"}}


@pytest.fixture
def source(tmp_path):
    return policy_run(tmp_path / "student")


@pytest.fixture
def evaluate(source):
    """Writes an evaluation beside ``source``, of the model ``made`` or of the base."""

    def write(name, made, mean, suites=("ocr",), **options):
        path = source.path.parent / name
        return str(evaluation(path, made, dict.fromkeys(suites, mean), **options).path)

    return write


def means(reported):
    return {e.of: {suite: figures["mean"] for suite, figures in e.suites.items()} for e in reported}


def test_only_complete_evaluations_of_one_protocol_are_reported(source, evaluate):
    evaluate("e1", source, 0.9)
    evaluate("e2", None, 0.5)
    evaluate("z1", source, 0.1, split="validation")
    evaluate("z2", source, 0.2, limit=3)
    evaluate("z3", None, 0.3, steps=11)
    evaluate("z4", None, 0.4, fields={"version": "ocr-2"})
    evaluate("z5", None, 0.6, base=Base(ref="toy", sha256="c" * 64))
    evaluate("z6", None, 0.7, seed=1)
    evaluate("z7", None, 0.8, guidance=1.0)
    assert means(evaluations(source, [])) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9}}


@pytest.mark.parametrize(
    ("judge", "comparable"),
    [
        (JUDGE, True),
        ({"weights": dict(reversed(JUDGE["weights"].items())), "engine": "reader-1", "reward": "ocr"}, True),
        (None, True),  # of a version that recorded none
        ({**JUDGE, "reward": "other"}, False),
        ({**JUDGE, "engine": "reader-2"}, False),
        ({**JUDGE, "weights": {"model": "sha256:2", "dtype": "float32"}}, False),
        ({"engine": "official.py"}, False),
        ({"engine": ["?"], "weights": [[1]], "reward": None}, True),
    ],
)
def test_figures_of_different_judges_are_not_reported_together(source, evaluate, judge, comparable):
    named = [evaluate("e1", source, 0.9, fields=JUDGE), evaluate("e2", None, 0.5, fields=judge)]
    assert ("base" in means(evaluations(source, []))) == comparable
    if not comparable:
        with pytest.raises(ArtifactError, match=r"not evaluated alike \(.*; another judge of ocr\); repeat one"):
            evaluations(source, named)


def test_the_judges_of_an_average_are_those_of_its_parts(source, evaluate):
    for name, made, engine in (("e1", source, "one"), ("e2", None, "two")):
        path = evaluate(name, made, 0.5, ("ocr", "quality"), fields={**JUDGE, "engine": engine})
        average = {"suite": "average", "version": "average-1", "mean": 0.5, "stderr": None, "n": 16}
        text = json.dumps({**average, "parts": {"ocr": 0.5, "quality": 0.5}})
        (source.path.parent / path / "eval" / "average.json").write_text(text)
    assert means(evaluations(source, [])).keys() == {"this model"}


def test_the_evaluation_with_most_suites_is_reported(source, evaluate):
    evaluate("e1", source, 0.9, ("ocr", "quality"))
    evaluate("e2", source, 0.1)
    evaluate("e3", None, 0.5)
    reported = evaluations(source, [])
    assert means(reported) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9, "quality": 0.9}}
    assert protocol(reported[1]) == (
        "test prompts, as many pictures each as the suite says, 40 steps, guidance 4.5, seed 42; "
        "suites ocr ocr-1, quality quality-1"
    )


def test_a_damaged_neighbour_is_skipped_unless_it_is_named(source, evaluate):
    manifest = source.path.parent / "damaged" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{")
    torn = evaluate("torn", source, 0.9)
    (source.path.parent / "torn" / "eval" / "ocr.json").write_text("{")
    assert evaluations(source, []) == []
    for path, message in ((str(manifest.parent), "damaged manifest"), (torn, "damaged result")):
        with pytest.raises(ArtifactError, match=message):
            evaluations(source, [path])


@pytest.mark.parametrize("figure", ["mean", "stderr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e301])
def test_a_result_that_is_no_finite_number_is_damaged(source, evaluate, figure, value):
    path = Path(evaluate("e", source, 0.9)) / "eval" / "ocr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), figure: value}))
    with pytest.raises(ArtifactError, match=f"{path}: damaged result"):
        results(RunDir.open(path.parents[1]))


def test_named_evaluations_must_compare(source, evaluate):
    ours, base = evaluate("e1", source, 0.9, split="validation"), evaluate("e2", None, 0.5)
    for named, message in (
        ([ours, base], r"not evaluated alike \(test prompts, .* / validation prompts, "),
        ([ours, evaluate("e3", source, 0.8)], r"e1 is of this model too; name one"),
        ([ours, ours], r"e1 is of this model too; name one"),
        ([str(source.path)], "not a finished evaluation of"),
    ):
        with pytest.raises(ArtifactError, match=message):
            evaluations(source, named)
    assert means(evaluations(source, [ours])) == {"this model": {"ocr": 0.9}}
