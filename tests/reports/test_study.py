"""The statistics, the files and the page of a study."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from support.reported import HOSTILE, Tags

from flowopd_cli.reports import study
from flowopd_cli.reports.page import Page
from flowopd_cli.reports.study import Row, groups_of, mean_and_error, paired, reference_of, tidy, write


def row(quality, seed=0, run="", evaluation="scores", cost=10.0, guidance=1.0, **values):
    """A result of one metric, and of ``ocr`` 0.1 above it."""
    run = run or f"eval-{evaluation}-{seed}-{values}"
    metrics = {"quality": quality, "ocr": quality + 0.1}
    return Row(
        evaluation, values, seed, guidance, metrics, {"teacher": 4.0, "student": cost}, cost, run, "test prompts"
    )


ROWS = [
    row(0.50, 0, x=1, kind="kl"),
    row(0.60, 1, x=1, kind="kl"),
    row(0.70, 2, x=1, kind="kl"),
    row(0.54, 0, x=2.5, kind="kl"),
    row(0.64, 1, x=2.5, kind="kl"),
    row(0.77, 2, x=2.5, kind="kl"),
]
BASE = [row(0.4, seed, run="eval-base", evaluation="base") for seed in (0, 1, 2)]


def test_the_mean_and_its_standard_error_by_hand():
    assert mean_and_error([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3)))
    assert mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([])
    assert (math.isnan(mean), error) == (True, None)


def test_differences_are_taken_at_equal_seeds():
    mean, error = paired({0: 0.54, 1: 0.64, 2: 0.77}, {0: 0.5, 1: 0.6, 2: 0.7})
    assert mean == pytest.approx(0.05)
    assert error == pytest.approx(0.01)  # differences .04 .04 .07: s = .01 * sqrt(3), over sqrt(3)
    assert paired({0: 1.0, 1: 9.0}, {0: 0.5, 2: 0.0}) == (0.5, None)
    assert math.isnan(paired({0: 1.0}, {1: 1.0})[0])


def test_groups_have_the_label_of_their_values():
    groups = groups_of(ROWS)
    assert [group.label for group in groups] == ["x 1, kind kl", "x 2.5, kind kl"]
    assert (groups[0].cell("quality").mean, groups[0].cell("absent")) == (pytest.approx(0.6), None)
    assert groups[0].cell("quality").stderr == pytest.approx(0.1 / math.sqrt(3))
    labels = [group.label for group in groups_of([*ROWS, *BASE])]
    assert labels == ["scores: x 1, kind kl", "scores: x 2.5, kind kl", "base"]
    assert groups_of(BASE)[0].cell("quality").stderr is None, "one run for all seeds"
    guided = [row(0.5, guidance=1.0), row(0.6, guidance=2.0)]
    assert [group.label for group in groups_of(guided)] == ["guidance 1", "guidance 2"]


def test_the_reference_is_the_named_cell_or_the_first():
    groups = groups_of([*ROWS, *BASE])
    assert reference_of(groups, {"x": 2.5}) is groups[1]
    assert reference_of(groups, {"evaluation": "base"}) is groups[2]
    assert reference_of(groups, {"x": 7}) is reference_of(groups, None) is groups[0]


def test_the_rows_are_tidy():
    rows = tidy([ROWS[3], BASE[0]])
    assert list(rows[0]) == [
        *("evaluation", "x", "kind", "seed", "eval.guidance", "quality", "ocr"),
        *("cpu_seconds", "cpu_seconds.teacher", "cpu_seconds.student", "run"),
    ]
    assert (rows[0]["x"], rows[1]["x"], rows[1]["quality"]) == (2.5, None, 0.4)
    assert all(list(one) == list(rows[0]) for one in rows)


def test_the_page_and_its_files(tmp_path):
    rows = [*ROWS, *(row(r.metrics["quality"] - 0.2, r.seed, **{**r.values, "kind": "velocity"}) for r in ROWS), *BASE]
    path = write(tmp_path, Page("Study x", "lead"), rows, {"x": 1, "kind": "kl"})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["report.html", *study.RESULTS])
    read = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(read) == 15
    assert (read[0]["x"], read[0]["quality"], read[-1]["x"]) == ("1", "0.5", "")
    assert json.loads((tmp_path / "results.json").read_text())[3]["x"] == 2.5
    assert (tmp_path / "table.md").read_text().startswith("| cell | quality | ocr |")
    html = path.read_text(encoding="utf-8")
    page = Tags(html)
    assert "Difference to scores: x 1, kind kl" in page.texts
    assert "+0.050 ± 0.010" in page.texts
    titles = [text for text in page.texts if " over " in text and "seeds" not in text]
    assert titles == ["quality over x", "quality over kind", "ocr over x", "ocr over kind"]
    assert {"kind kl", "kind velocity", "x 1", "x 2.5"} <= set(page.texts)


def test_an_axis_of_names_stands_in_their_order(monkeypatch):
    numbers = study._places([2, 1.0, 10])
    assert numbers == {2: 2.0, 1.0: 1.0, 10: 10.0}
    assert study._places(["1", "3"]) == {"1": 1.0, "3": 3.0}
    assert study._places(["soft", "hard"]) == {"soft": 0.0, "hard": 1.0}
    assert study._places(["1", "inf"]) == {"1": 0.0, "inf": 1.0}


def averaged(average, seed, cost, evaluation="scores", **values):
    """A result with an average."""
    one = row(average, seed, cost=cost, evaluation=evaluation, **values)
    return replace(one, metrics={"quality": average, "average": average})


def test_the_average_is_drawn_over_its_cost():
    cells = [(kind, x, seed) for kind in "ab" for x in (1, 2) for seed in (0, 2)]
    rows = [averaged(0.5 + x / 10, seed, 100 * x + seed, kind=kind, x=x) for kind, x, seed in cells]
    (chart,) = study.cost_charts(groups_of(rows))
    assert [key.name for key in chart.legend] == ["kind a", "kind b"]
    assert "kind a 1 0.600 at 101; kind a 2 0.700 at 201; kind b 1 0.600 at 101" in chart.alt
    assert chart.drawing.count("<use ") == 4 * (2 + 1), "two seeds and their mean"
    base = averaged(0.4, 0, 7, evaluation="base")
    (chart,) = study.cost_charts(groups_of([*rows[:2], base]))
    assert [key.name for key in chart.legend] == ["scores: kind a", "base"]
    assert "base 0.400 at 7" in chart.alt


def test_no_cost_is_drawn_where_fewer_than_two_are_known():
    assert list(study.cost_charts(groups_of(ROWS))) == [], "no average"
    rows = [averaged(0.5, 0, 10, x=1), averaged(0.6, 0, None, x=2)]
    assert list(study.cost_charts(groups_of(rows))) == []


def test_unknown_cpu_time_is_shown_as_unknown(tmp_path):
    rows = [row(0.5, 0, x=1), row(0.5, 1, x=1, cost=None)]
    texts = Tags(write(tmp_path, Page("t", "l"), rows, None).read_text(encoding="utf-8")).texts
    place = texts.index("CPU-seconds")
    assert texts[place:].count("—") == 2


def test_a_study_without_results_has_a_page(tmp_path):
    write(tmp_path, Page("t", "l", warnings=[("a", "failed")]), [], None)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_names_are_escaped(tmp_path):
    rows = [row(0.5, seed, **{HOSTILE: value}) for seed in (0, 1) for value in (HOSTILE, 2)]
    html = write(tmp_path, Page(HOSTILE, HOSTILE), rows, None).read_text(encoding="utf-8")
    assert not [tag for tag, _ in Tags(html).elements if tag == "script"]
    assert "onerror" not in {key for _, attributes in Tags(html).elements for key in attributes}
