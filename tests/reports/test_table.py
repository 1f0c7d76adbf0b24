"""Tables of results: averages, changes against the base, and texts that stay in their cells."""

import json
import math
import re

import pytest
from support import reported
from support.reported import HOSTILE, PAPER, page_of

from flowopd_cli.reports import changes, report, table
from flowopd_cli.reports.entries import Entry, collect
from flowopd_cli.runs.evaluations import by_guidance


def test_the_average_of_a_suite_called_average_is_its_own(tmp_path):
    teacher = reported.teacher(tmp_path / "t")
    reported.evaluation(tmp_path / "e-base", None, PAPER)
    scored = reported.evaluation(tmp_path / "e", teacher, PAPER | {"average": 0.8, "ocr": 0.9})
    target, entries, _ = report.of_runs([teacher.path], tmp_path / "c")
    shown = table.table(entries)
    assert shown.columns == ("deqa", "geneval", "ocr", "pickscore", "average")
    assert [cells[-1] for _, cells in shown.rows] == [table.Cell(0.7, 0.01), table.Cell(0.8, 0.01, best=True)]
    rows = [row for row in json.loads((tmp_path / "c" / "numbers.json").read_text()) if row["suite"] == "average"]
    assert [row["mean"] for row in rows] == [0.7, 0.8]
    for page in (target, report.of_run(scored.path, None)):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<th scope="col" class="n">(\w+)', text) == [*shown.columns]
        assert "average: as its suite defines it" in text


@pytest.mark.parametrize(
    ("means", "note"),
    [
        ({"geneval": 0.6, "mine": -0.2}, "No average: the suites are on different scales."),
        ({"geneval": 0.6, "drawbench-imagereward": 0.87}, "No average: the suites are on different scales."),
        ({"t2i": 0.5, "t2i-color": 0.6, "t2i-shape": 0.4}, "No average: t2i is the mean of other columns."),
        ({"geneval": 0.6}, ""),
    ],
)
def test_there_is_no_average_without_a_meaning(tmp_path, means, note):
    run = reported.evaluation(tmp_path / "e", None, means)
    shown = table.table([Entry("base", None, by_guidance(run)[0])])
    assert (set(shown.columns), shown.note) == (set(means), note)
    assert note in " ".join(page_of(run.path, tmp_path).texts)


def test_the_only_figure_of_a_column_is_not_the_best(tmp_path):
    alone = reported.evaluation(tmp_path / "e", reported.teacher(tmp_path / "t"), {"geneval": 0.7})
    other = reported.evaluation(tmp_path / "f", reported.teacher(tmp_path / "u"), {"ocr": 0.5})
    reported.teacher(tmp_path / "v")  # without an evaluation
    for paths in ([alone.path, tmp_path / "v"], [alone.path, other.path]):
        shown = table.table(collect(paths))
        assert not any(cell.best for _, cells in shown.rows for cell in cells if cell)


def test_the_change_against_the_base_has_a_sign_and_an_error(world):
    found = table.changes_against_base(collect([world / "t-one", world / "student"]))
    assert list(found) == ["t-one", "student"]
    assert found["t-one"]["ocr"] == pytest.approx((-0.05, math.sqrt(2) * 0.01))
    assert found["student"]["ocr"][0] == pytest.approx(0.4)
    [chart] = changes.panels(found, [["geneval", "ocr"]])
    assert "t-one: geneval +0.100, ocr -0.050" in chart.alt
    assert [key.name for key in chart.legend] == ["geneval", "ocr"]
    assert changes.panels({}, [["ocr"]]) == []


def test_each_suite_is_in_a_panel_of_its_scale(tmp_path):
    many = [f"s{i:02d}" for i in range(12)]
    means = {suite: 0.3 + 0.02 * i for i, suite in enumerate(many)} | PAPER
    entries = collect([reported.evaluated(tmp_path, means), tmp_path / "e"])
    charts = changes.panels(table.changes_against_base(entries), table.scales(entries))
    legends = [[key.name for key in chart.legend] for chart in charts]
    assert legends == [["geneval", "ocr", *many[:5]], many[5:], ["deqa"], ["pickscore"]]
    for chart, suites in zip(charts, legends, strict=True):
        assert chart.alt == "Change against the base: t: " + ", ".join(f"{suite} +0.100" for suite in suites)
        assert len({key.mark for key in chart.legend}) == len(suites)


def test_a_change_that_is_no_number_is_left_out():
    found = {"m": {"a": (0.1, None), "b": (math.nan, None)}, "n": {"b": (math.nan, 0.1)}}
    [chart] = changes.panels(found, [["a", "b"], ["c"]])
    assert chart.alt == "Change against the base: m: a +0.100"


def test_texts_of_a_table_stay_in_their_cells():
    cell = table.Cell(0.5, None, best=True)
    shown = table.Table((HOSTILE,), ((HOSTILE, (cell,)), ("a & b_c", (None,))))
    assert len(table.as_markdown(shown).splitlines()) == 4
    assert "<" not in table.as_markdown(shown)
    tex = table.as_latex(shown).splitlines()
    assert tex[-3] == "a \\& b\\_c & -- \\\\"
    assert "\\frac" not in "".join(tex)
    assert table.as_csv([{"model": "=cmd()", "mean": -0.5}]) == "model,mean\n'=cmd(),-0.5\n"


def test_costs_are_whole_numbers_after_the_average(tmp_path):
    run = reported.evaluation(tmp_path / "e", None, {"geneval": 0.6, "ocr": 0.5})
    one = by_guidance(run)[0]
    shown = table.table([Entry("base", None, one), Entry("student", None, one, costs={"pictures drawn": 12345.0})])
    assert shown.columns == ("geneval", "ocr", "average", "pictures drawn")
    assert [cells[-1] and cells[-1].text for _, cells in shown.rows] == [None, "12,345"]
    assert "| 12,345 |" in table.as_markdown(shown)
