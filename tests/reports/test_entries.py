"""Which models a comparison has, and which of their evaluations compare."""

import json
import re

import pytest
from support import reported

from flowopd_cli.reports import report, table
from flowopd_cli.reports.entries import collect


def test_runs_are_compared_by_the_evaluations_of_their_weights(world):
    entries = collect([world / "t-one", world / "t-two", world / "student"])
    evaluated = {entry.name: bool(entry.evaluation) for entry in entries}
    assert list(evaluated.items()) == [("base", True), ("t-one", True), ("t-two", False), ("student", True)]
    assert entries[-1].results == collect([world / "e-student"])[-1].results
    twice = collect([world / "e-student", world / "t-one", world / "e-student"])
    runs = {entry.name: entry.run and entry.run.path.name for entry in twice}
    assert list(runs.items()) == [("base", None), ("student", "student"), ("t-one", "t-one")]


def test_only_pictures_of_equal_prompts_and_seeds_share_a_grid(world, tmp_path):
    other = reported.evaluation(tmp_path / "e-other", seed=1)
    target, entries, _ = report.of_runs([world / "e-one", world / "e-student", other.path], tmp_path / "c")
    text = target.read_text(encoding="utf-8")
    assert text.count('<section class="pictures">') == 2
    assert {entry.name: entry.comparable for entry in entries} == {"base": False, "t-one": True, "student": True}
    assert "† base was evaluated otherwise and does not compare" in text
    assert re.findall(r"<b>([\d.]+)</b>", text) == ["0.800", "0.900", "0.850"]


def test_figures_of_another_judge_are_marked_and_never_the_best(tmp_path):
    for name, engine in (("a", None), ("b", "one"), ("c", "two"), ("d", "one")):
        run = reported.evaluation(tmp_path / name, means={"ocr": 0.9 if engine == "two" else 0.5})
        result = json.loads(run.eval_file("ocr").read_text()) | ({"engine": engine} if engine else {})
        run.write_eval("ocr", json.dumps(result))
    target, entries, _ = report.of_runs([tmp_path / name for name in "abcd"], tmp_path / "x")
    assert [entry.comparable for entry in entries] == [True, True, False, True]
    text = target.read_text(encoding="utf-8")
    assert re.search(r"† base \(3\) was evaluated otherwise and does not compare: [^†]*; another judge of ocr\.", text)
    assert "0.900</b>" not in text


def test_each_guidance_of_a_model_is_a_row_that_compares_with_all_others(world, tmp_path):
    scales = {"guidance": (1, 2), "split": "validation"}
    one = reported.teacher(tmp_path / "t")
    reported.evaluation(tmp_path / "e-base", None, {"geneval": (0.5, 0.6), "ocr": (0.5, 0.6)}, **scales)
    scored = reported.evaluation(tmp_path / "e", one, {"geneval": (0.8, 0.7), "ocr": (0.6, 0.65)}, **scales)
    other = reported.evaluation(tmp_path / "e-other", reported.teacher(tmp_path / "u"), guidance=3, split="validation")
    for paths in ([one.path, tmp_path / "u"], [scored.path, other.path]):
        target, entries, _ = report.of_runs(paths, tmp_path / f"c-{paths[0].name}")
        labels = [
            f"{name}, guidance {value}" for name, value in zip(["base", "base", "t", "t", "u"], "12123", strict=True)
        ]
        assert [entry.label for entry in entries] == labels
        assert all(entry.comparable for entry in entries)
        names = [name for name, _ in table.table(entries).rows]
        assert [name for name in names if name.endswith(" (best)")] == [f"{labels[i]} (best)" for i in (1, 2)]
        changes = table.changes_against_base(entries)
        assert list(changes) == labels[2:4]
        assert [change["ocr"][0] for change in changes.values()] == pytest.approx([0.1, 0.05])
        text = target.read_text(encoding="utf-8")
        assert "guidance 1, 2, 3, seed 42" in text
        assert "Best guidance by the average on validation prompts: base 2, t 1." in text


def test_the_page_of_an_evaluation_has_a_row_and_pictures_of_each_guidance(tmp_path):
    run = reported.evaluation(tmp_path / "e", None, {"geneval": (0.5, 0.7), "ocr": (0.5, 0.6)}, guidance=(1, 2))
    page = reported.page_of(run.path, tmp_path)
    text = " ".join(page.texts)
    assert "base, guidance 2 (best)" in text
    assert "Best guidance by the average on test prompts: base 2. Choose a guidance on validation prompts." in text
    assert len(page.all("img")) == 2 * 3
