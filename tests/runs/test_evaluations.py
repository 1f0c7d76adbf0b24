"""The results of evaluation runs, by suite and guidance."""

import json
import math

import pytest
from support.reported import evaluation

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.evaluations import average_of, best_part, by_guidance, outcome, protocol, results
from flowopd_cli.runs.run import RunDir


@pytest.mark.parametrize("figure", ["mean", "stderr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e301])
def test_a_result_that_is_no_finite_number_is_damaged(tmp_path, figure, value):
    path = evaluation(tmp_path / "e").eval_file("ocr")
    path.write_text(json.dumps({**json.loads(path.read_text()), figure: value}))
    with pytest.raises(ArtifactError, match=f"{path}: damaged result"):
        results(RunDir.open(path.parents[1]))


def test_each_guidance_of_a_run_is_an_evaluation(tmp_path):
    run = evaluation(tmp_path / "e", means={"ocr": (0.5, 0.7, 0.6)}, guidance=(1, 1.5, 10))
    scores = by_guidance(run)
    assert [(one.part, one.guidance, one.results["ocr"]["mean"]) for one in scores] == [
        ("guidance-1", 1, 0.5),
        ("guidance-1.5", 1.5, 0.7),
        ("guidance-10", 10, 0.6),
    ]
    assert "guidance 1, 1.5, 10, seed" in protocol(*scores)
    found = outcome(run.recipe().eval, {one.part: one.results for one in scores})
    assert (found["best_guidance"], [row["guidance"] for row in found["by_guidance"]]) == (1.5, [1, 1.5, 10])
    run.write_eval("ocr", run.eval_file("ocr", "guidance-1").read_text())
    assert results(run).keys() == {"ocr"}
    assert results(run)["ocr"]["mean"] == 0.5, "of a single guidance, whatever others the run had"


@pytest.mark.parametrize(
    ("suites", "average"),
    [
        ({"imagereward": -0.5}, -0.5),
        ({"ocr": 0.5, "geneval": 0.7}, 0.6),
        ({"ocr": 0.5, "drawbench-imagereward": 0.7}, None),
        ({"ocr": 0.5, "pickscore": 22.0}, None),
        ({"ocr": 0.5, "pickscore": 22.0, "average": 0.4}, 0.4),
        ({"t2i": 0.5, "t2i-color": 0.9, "t2i-shape": 0.1, "ocr": 0.7}, 0.6),
        ({}, None),
    ],
)
def test_the_average_of_suites_on_one_scale(suites, average):
    assert average_of({name: {"mean": mean} for name, mean in suites.items()}) == (
        None if average is None else pytest.approx(average)
    )


def test_the_best_part_is_the_first_of_equals_and_none_where_averages_do_not_compare():
    def part(**means):
        return {name: {"mean": mean} for name, mean in means.items()}

    assert best_part({1.0: part(ocr=0.5), 2.0: part(ocr=0.6), 3.0: part(ocr=0.6)}) == 2.0
    assert best_part({1.0: part(ocr=-0.5), 2.0: part(ocr=-0.6)}) == 1.0
    assert best_part({1.0: part(ocr=0.5), 2.0: part(geneval=0.6)}) is None
    assert best_part({1.0: part(ocr=0.5, pickscore=22.0), 2.0: part(ocr=0.6, pickscore=23.0)}) is None
    assert best_part({1.0: part(ocr=0.5)}) is None
