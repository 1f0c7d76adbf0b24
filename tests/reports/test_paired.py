"""Paired differences: closed forms, pictures that one model lacks, tags, guidances, the page and the command."""

import json
import math
import random

import pytest
from support import reported

from flowopd_cli.errors import ArtifactError
from flowopd_cli.reports import paired, report, table
from flowopd_cli.reports.entries import collect
from flowopd_cli.suites.base import aggregate


def values(rows):
    """``{(tag, prompt): {index: value}}`` from rows of tag, prompt and the values of its pictures."""
    return {(tag, prompt): dict(enumerate(pictures)) for tag, prompt, pictures in rows}


def test_difference_of_two_models_by_hand():
    one = values([("a", "p", (1.0, 0.0)), ("a", "q", (0.5, 0.5)), ("b", "r", (0.2, 0.4)), ("b", "s", (0.0, 0.6))])
    other = values([("a", "p", (0.0, 0.0)), ("a", "q", (1.0, 0.5)), ("b", "r", (0.2, 0.4)), ("b", "s", (0.2, 0.2))])
    pair = paired.difference(one, other)
    # prompts: +0.5, -0.25 in a; 0, +0.1 in b
    assert pair.mean == pytest.approx((0.125 + 0.05) / 2)
    assert pair.stderr == pytest.approx(math.sqrt(0.75**2 / 2 / 2 + 0.1**2 / 2 / 2) / 2)
    assert (pair.won, pair.lost, pair.prompts) == (0.5, 0.25, 4)
    back = paired.difference(other, one)
    assert (back.mean, back.stderr, back.won, back.lost) == pytest.approx(
        (-pair.mean, pair.stderr, pair.lost, pair.won)
    )


def test_pictures_of_one_model_alone_do_not_count():
    one = {("a", "p"): {0: 1.0, 1: 0.0}, ("a", "q"): {0: 0.5}, ("a", "r"): {0: 0.9}}
    other = {("a", "p"): {1: 0.25}, ("a", "q"): {0: 0.25}, ("b", "r"): {0: 0.1}}
    pair = paired.difference(one, other)
    assert (pair.mean, pair.prompts) == (0.0, 2)
    assert paired.difference(one, {}) is None
    assert paired.difference({("a", "p"): {0: 1.0}}, other) is None


def test_a_tag_with_one_prompt_has_no_error():
    pair = paired.difference(values([("a", "p", (1.0,))]), values([("a", "p", (0.25,))]))
    assert (pair.mean, pair.stderr) == (0.75, None)


def test_common_noise_of_the_prompts_leaves_the_error():
    draw = random.Random(0)
    level = [draw.gauss(0, 1) for _ in range(200)]
    one, other = (
        {("", str(i)): {0: x + shift + draw.gauss(0, 0.01)} for i, x in enumerate(level)} for shift in (0.1, 0)
    )
    pair = paired.difference(one, other)
    assert abs(pair.mean - 0.1) < 5 * pair.stderr
    assert pair.stderr == pytest.approx(math.sqrt(2 / 200) * 0.01, rel=0.2)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_difference_is_that_of_the_headlines_with_the_error_of_one_of_differences(weighted):
    draw = random.Random(1)
    places = [(draw.choice("ab"), str(i), index) for i in range(30) for index in range(draw.randint(1, 3))]
    figures = [[draw.random() for _ in places] for _ in range(3)]
    one, other, weights = ({} for _ in figures)
    for column, values_of in zip((one, other, weights), figures, strict=True):
        for (tag, prompt, index), value in zip(places, values_of, strict=True):
            column.setdefault((tag, prompt), {})[index] = value
    pair = paired.difference(one, other, weights if weighted else None)
    groups = [prompt for _, prompt, _ in places], [tag for tag, *_ in places], figures[2] if weighted else None
    _, first, _ = aggregate(figures[0], *groups)
    _, second, _ = aggregate(figures[1], *groups)
    _, _, stderr = aggregate([a - b for a, b in zip(*figures[:2], strict=True)], *groups)
    assert (pair.mean, pair.stderr) == pytest.approx((first - second, stderr))


def test_a_suite_s_weights_are_read_from_its_rows(tmp_path):
    for path, policy, scores in (("e-base", None, (0.2, 0.5)), ("e", reported.teacher(tmp_path / "t"), (0.8, 0.6))):
        evaluated(tmp_path / path, policy, scores, fields={"weight": "expected"})
    pair = paired.against(collect([tmp_path / "t"]), "base")["t"]["ocr"]
    assert pair.mean == pytest.approx((1 * 0.6 + 2 * 0.1) / 3)


def evaluated(path, policy, scores, **options):
    """An evaluation on prompts with these scores, and one that could not be scored."""
    run = reported.evaluation(path, policy, {"ocr": sum(scores) / len(scores)}, **options)
    rows = [
        {"task": "ocr", "prompt": str(i), "tag": "", "index": 0, "value": value, "scores": {"expected": i + 1}}
        for i, value in enumerate((*scores, None))
    ]
    run.write_rows("ocr", rows)


@pytest.fixture
def scored(tmp_path):
    """Base and teacher with rows: the teacher wins the first of three prompts and loses the last."""
    made = reported.teacher(tmp_path / "t")
    for path, policy, scores in (("e-base", None, (0.2, 0.5, 0.8)), ("e", made, (0.9, 0.5, 0.7))):
        evaluated(tmp_path / path, policy, scores)
    return tmp_path


def test_a_quantized_base_compares_with_itself_alone_and_its_difference_is_shown(scored):
    teacher = reported.RunDir.open(scored / "t")
    evaluated(scored / "e-nf4", teacher, (0.8, 0.5, 0.5), quantize="nf4")
    entries = collect([scored / "t", reported.student(scored / "s", teacher, finish=False).path])
    rows = {entry.label: (entry.comparable, entry.evaluation and entry.evaluation.quantize) for entry in entries}
    assert rows == {"base": (True, "none"), "t": (True, "none"), "t, nf4 base": (False, "nf4"), "s": (True, None)}
    assert table.changes_against_base(entries).keys() == paired.against(entries, "base").keys() == {"t"}
    pair = paired.against_full_precision(entries)["t, nf4 base"]["ocr"]
    assert (pair.mean, pair.won, pair.lost, pair.prompts) == pytest.approx((-0.1, 0, 2 / 3, 3))
    target, *_ = report.of_runs([scored / "e", scored / "e-nf4"], scored / "out")
    texts = reported.Tags(target.read_text(encoding="utf-8")).texts
    assert "less full precision" in texts
    assert f"-0.100 ± {pair.stderr:.3f} (0% / 67%)" in texts
    assert any("† t, nf4 base was evaluated otherwise" in text and "base in nf4" in text for text in texts)


def test_bases_and_models_in_the_same_bits_compare(tmp_path):
    made = reported.teacher(tmp_path / "t")
    for path, policy, score in (("e-base", None, 0.2), ("e", made, 0.9)):
        evaluated(tmp_path / path, policy, (score, score), quantize="int8")
    entries = collect([tmp_path / "t"])
    assert [(entry.label, entry.comparable) for entry in entries] == [("base, int8 base", True), ("t, int8 base", True)]
    assert paired.against(entries, "base")["t, int8 base"]["ocr"].mean == pytest.approx(0.7)
    assert paired.against_full_precision(entries) == {}


def test_the_report_shows_paired_differences_and_their_errors(scored):
    entries = collect([scored / "t", scored / "e"])
    pair = paired.against(entries, "base")["t"]["ocr"]
    assert (pair.mean, pair.won, pair.lost, pair.prompts) == pytest.approx((0.2, 1 / 3, 1 / 3, 3))
    assert table.changes_against_base(entries)["t"]["ocr"] == pytest.approx((pair.mean, pair.stderr))
    target, *_ = report.of_runs([scored / "t", scored / "e"], scored / "out")
    texts = reported.Tags(target.read_text(encoding="utf-8")).texts
    assert "less base" in texts
    assert f"+0.200 ± {pair.stderr:.3f} (33% / 33%)" in texts
    target, *_ = report.of_runs([scored / "t", scored / "e"], scored / "out2", "t")
    texts = reported.Tags(target.read_text(encoding="utf-8")).texts
    assert f"-0.200 ± {pair.stderr:.3f} (33% / 33%)" in texts


def test_another_suite_protocol_or_model_is_not_paired(scored):
    run = reported.evaluation(scored / "e2", reported.teacher(scored / "u"), {"ocr": 0.5}, seed=7)
    run.write_rows("ocr", [{"task": "ocr", "prompt": "0", "tag": "", "index": 0, "value": 0.5}])
    entries = collect([scored / "t", scored / "u"])
    assert "u" not in paired.against(entries, "base")
    with pytest.raises(ArtifactError, match="--against v: no such model; those with comparable evaluations: base, t"):
        report.of_runs([scored / "t", scored / "u"], scored / "out", "v")


def test_a_damaged_row_is_named(scored):
    path = scored / "e" / "eval" / "ocr.jsonl"
    path.write_text(json.dumps({"task": "ocr", "prompt": "0", "value": 1.0}) + "\n")
    with pytest.raises(ArtifactError, match=r"ocr\.jsonl: damaged row of a scored picture"):
        report.of_runs([scored / "t", scored / "e"], scored / "out")
