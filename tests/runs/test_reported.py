"""Which evaluations of a run and of its base a card reports together."""

import json

import pytest
from support.reported import evaluation, policy_run

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.evaluations import protocol
from flowopd_cli.runs.manifest import Base
from flowopd_cli.runs.reported import reported

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


def means(scores):
    return {e.of: {suite: figures["mean"] for suite, figures in e.suites.items()} for e in scores.rows}


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
    evaluate("z8", None, 0.8, quantize="nf4")
    assert means(reported(source, [])) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9}}


def test_a_quantized_base_is_reported_beside_its_like_alone(source, evaluate):
    ours, base = evaluate("a", source, 0.9, quantize="nf4"), evaluate("b", None, 0.5)
    with pytest.raises(ArtifactError, match=r"not evaluated alike \(test prompts.* / .*, base in nf4; suites"):
        reported(source, [ours, base])
    assert means(reported(source, [ours, evaluate("c", None, 0.4, quantize="nf4")]))["base"] == {"ocr": 0.4}


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
    assert ("base" in means(reported(source, []))) == comparable
    if not comparable:
        with pytest.raises(ArtifactError, match=r"not evaluated alike \(.*; another judge of ocr\); repeat one"):
            reported(source, named)


def test_the_judges_of_an_average_are_those_of_its_parts(source, evaluate):
    for name, made, engine in (("e1", source, "one"), ("e2", None, "two")):
        path = evaluate(name, made, 0.5, ("ocr", "quality"), fields={**JUDGE, "engine": engine})
        average = {"suite": "average", "version": "average-1", "mean": 0.5, "stderr": None, "n": 16}
        text = json.dumps({**average, "parts": {"ocr": 0.5, "quality": 0.5}})
        (source.path.parent / path / "eval" / "average.json").write_text(text)
    assert means(reported(source, [])).keys() == {"this model"}


def test_the_evaluation_with_most_suites_is_reported(source, evaluate):
    evaluate("e1", source, 0.9, ("ocr", "quality"))
    evaluate("e2", source, 0.1)
    evaluate("e3", None, 0.5)
    scores = reported(source, [])
    assert means(scores) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9, "quality": 0.9}}
    assert protocol(scores.rows[1]) == (
        "test prompts, as many pictures each as the suite says, 40 steps, guidance 4.5, seed 42; "
        "suites ocr ocr-1, quality quality-1"
    )


def test_a_damaged_neighbour_is_skipped_unless_it_is_named(source, evaluate):
    manifest = source.path.parent / "damaged" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{")
    torn = evaluate("torn", source, 0.9)
    (source.path.parent / "torn" / "eval" / "ocr.json").write_text("{")
    assert reported(source, []).rows == []
    for path, message in ((str(manifest.parent), "damaged manifest"), (torn, "damaged result")):
        with pytest.raises(ArtifactError, match=message):
            reported(source, [path])


def test_named_evaluations_must_compare(source, evaluate):
    ours, base = evaluate("e1", source, 0.9, split="validation"), evaluate("e2", None, 0.5)
    for named, message in (
        ([ours, base], r"not evaluated alike \(test prompts, .* / validation prompts, "),
        ([ours, evaluate("e3", source, 0.8)], r"e1 is of this model too; name one"),
        ([ours, ours], r"e1 is of this model too; name one"),
        ([str(source.path)], "not a finished evaluation of"),
    ):
        with pytest.raises(ArtifactError, match=message):
            reported(source, named)
    assert means(reported(source, [ours])) == {"this model": {"ocr": 0.9}}


SWEPT = {"split": "validation", "guidance": (1, 1.5, 2)}


def test_the_best_guidance_on_validation_prompts_chooses_the_row(source, evaluate):
    evaluate("e1", source, (0.5, 0.9, 0.8), ("ocr", "quality"), **SWEPT)
    scores = reported(source, [], guidance=4.5)
    assert (scores.rows, scores.guidance, scores.guidances) == ([], 1.5, (1, 1.5, 2))
    evaluate("e2", source, 0.6, guidance=4.5)
    evaluate("e3", source, (0.4, 0.3), guidance=(1, 1.5))
    evaluate("e4", None, (0.1, 0.2, 0.3), guidance=(2, 1.5, 1))
    for named in ([], ["e1", "e3", "e4"]):
        scores = reported(source, [str(source.path.parent / name) for name in named])
        assert means(scores) == {"base": {"ocr": 0.2}, "this model": {"ocr": 0.3}}, "at 1.5, best on test is 1"
        assert (scores.guidance, scores.best.protocol["split"]) == (1.5, "validation")


def test_runs_at_one_guidance_each_are_compared_too(source, evaluate):
    for guidance, mean in ((1, 0.4), (2, 0.7), (3, 0.6)):
        evaluate(f"e{guidance}", source, mean, split="validation", guidance=guidance)
    evaluate("e4", source, 0.9, split="validation", guidance=4, steps=50)
    scores = reported(source, [])
    assert (scores.guidance, scores.guidances) == (2, (1, 2, 3))


def test_an_evaluation_with_a_limit_chooses_a_guidance_only_if_it_is_named(source, evaluate):
    small = evaluate("e1", source, (0.9, 0.5, 0.4, 0.3), split="validation", guidance=(1, 2, 3, 4), limit=4)
    assert reported(source, []).best is None
    assert reported(source, [small]).guidance == 1
    evaluate("e2", source, (0.5, 0.6), split="validation", guidance=(1, 2))
    assert reported(source, []).guidance == 2


def test_figures_on_test_prompts_choose_no_guidance(source, evaluate):
    evaluate("e1", source, (0.5, 0.9, 0.8), guidance=(1, 1.5, 4))
    scores = reported(source, [], guidance=4.5)
    assert (scores.best, scores.guidance, scores.guidances) == (None, None, (1, 1.5, 4))
    assert scores.model.guidance == 4, "the nearest to the training's"
    evaluate("e2", source, 0.6, ("ocr", "quality"), guidance=3)
    assert reported(source, [], guidance=4.5).guidance == 3, "the only one of the fullest evaluation"
