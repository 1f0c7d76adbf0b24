"""Which models a comparison has, and which of their evaluations compare."""

import json
import re

from support import reported

from flowopd_cli.reports import report
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
