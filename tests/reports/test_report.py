"""Reports at the end of a run, comparisons with their files, and what the command refuses to overwrite."""

import base64
import csv
import io
import json
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from support import reported
from support.reported import Tags

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import Interrupted
from flowopd_cli.reports import report, run_page, table
from flowopd_cli.runs.run import RunDir

WORK = "years of work"


def works(recipe, run, progress, **rest):
    run.log(reported.row(1, reward=0.5))
    run.log(reported.row(2, reward=0.75))
    return {"metrics": {"reward": 0.75}}


def stops(recipe, run, progress, **rest):
    works(recipe, run, progress)
    raise Interrupted("stopped after iteration 2 of 9")


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Runs a stage that does ``work``, with reports switched on; returns its run even if it is stopped."""
    monkeypatch.setenv("FLOWOPD_REPORT", "1")

    def execute(work, stopped=None):
        monkeypatch.setitem(sys.modules, "flowopd_cli.stages.teacher", SimpleNamespace(run=work))
        run, plan = RunDir.create(tmp_path / "r", "teacher"), Plan.of(recipes.build(reported.TEACHER))
        with pytest.raises(stopped) if stopped else nullcontext():
            run_stage(plan, run, Console())
        return run

    return execute


@pytest.mark.parametrize(("work", "status", "stopped"), [(works, "done", None), (stops, "interrupted", Interrupted)])
def test_a_stage_ends_with_a_report_that_is_no_artifact(execute, work, status, stopped):
    run = execute(work, stopped)
    page = run.report_file.read_text()
    assert f"<dt>status</dt><dd>{status}</dd>" in page
    assert "reward from 0.5 to 0.75" in page
    assert run.report_file.name not in [artifact.path for artifact in run.manifest().artifacts]  # it may be rewritten


def test_a_report_that_fails_does_not_fail_the_run(execute, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = execute(works)
    assert run.manifest().status == "done"
    assert not run.report_file.exists()
    [line] = [line for line in capsys.readouterr().err.splitlines() if "no report was written" in line]
    assert line.endswith(f"try again with: flowopd report {run.path}")


@pytest.mark.parametrize(
    ("work", "status", "stopped"), [(works, "done", KeyboardInterrupt), (stops, "interrupted", Interrupted)]
)
def test_a_report_that_is_interrupted_leaves_the_status_of_the_run(execute, monkeypatch, work, status, stopped):
    monkeypatch.setattr(run_page, "page", Mock(side_effect=KeyboardInterrupt))
    assert execute(work, stopped).manifest().status == status


@pytest.mark.parametrize("word", ["0", "off"])
def test_reports_can_be_switched_off(execute, monkeypatch, word):
    monkeypatch.setenv("FLOWOPD_REPORT", word)
    assert not execute(works).report_file.exists()


def test_a_comparison_has_its_numbers_as_files(world, tmp_path):
    target, _, files = report.of_runs([world / "t-one", world / "t-two", world / "student"], tmp_path / "c")
    text = target.read_text(encoding="utf-8")
    assert [path.name for path in files] == list(table.NUMBERS)
    links = {link["download"]: link["href"] for link in Tags(text).all("a") if "download" in link}
    for path in files:
        assert base64.b64decode(links[path.name].partition(",")[2]).decode() == path.read_text(encoding="utf-8")
    assert re.findall(r"<b>([\d.]+)</b>", text) == ["0.800", "0.900", "0.850"]
    assert (tmp_path / "c" / "table.md").read_text().splitlines() == [
        "| model | geneval | ocr | average |",
        "|---|---:|---:|---:|",
        "| base | 0.600 ± 0.010 | 0.500 ± 0.010 | 0.550 |",
        "| t-one | 0.700 ± 0.010 | 0.450 ± 0.010 | 0.575 |",
        "| t-two | — | — | — |",
        "| student | **0.800** ± 0.010 | **0.900** ± 0.010 | **0.850** |",
    ]
    tex = (tmp_path / "c" / "table.tex").read_text()
    assert "student & \\textbf{0.800} {\\scriptsize $\\pm$ 0.010} & \\textbf{0.900}" in tex
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c" / "numbers.csv").read_text())))
    figures = [(row["model"], row["suite"], float(row["mean"])) for row in rows]
    assert figures[2:4] == [("t-one", "geneval", 0.7), ("t-one", "ocr", 0.45)]
    assert len(json.loads((tmp_path / "c" / "numbers.json").read_text())) == len(rows) == 6
    assert "Not evaluated: t-two." in text


def test_runs_without_evaluations_are_compared_by_their_curves(world, tmp_path):
    paths = [reported.teacher(tmp_path / name).path for name in ("a", "b")]
    target, _, files = report.of_runs(paths, tmp_path / "c")
    assert files == []
    texts = Tags(target.read_text()).texts
    assert "Results" not in texts
    assert {"Reward", "None of these models has an evaluation: flowopd eval --adapter RUN makes one."} <= set(texts)


def test_the_command_prints_the_page(flowopd, world, tmp_path):
    code, out, _ = flowopd("report", world / "t-one", "--out", tmp_path / "one.html")
    assert (code, out) == (0, f"{tmp_path}/one.html\n")
    code, out, _ = flowopd("report", world / "t-one", world / "student", "--out", tmp_path / "c", "--json")
    result = json.loads(out)
    assert (code, result["report"]) == (0, f"{tmp_path}/c/report.html")
    assert list(result["models"]) == ["base", "t-one", "student"]
    assert flowopd("report", world / "t-one", world / "student", "--out", tmp_path / "c")[0] == 0  # its own: again


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["{w}/t-one", "--out", "{t}/notes.txt"], "is a file; --out names a folder, or a file that ends in .html"),
        (["{w}/t-one", "--out", "{t}/mine.html"], "is not a flowopd report; give --out a fresh name"),
        (["{w}/t-one", "--out", "{t}"], "is not empty and has no report.html of ours in it"),
        (["{w}/t-one", "{w}/student", "--out", "{w}/student"], "give --out a"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_overwritten(flowopd, world, tmp_path, argv, message):
    for name in ("notes.txt", "mine.html"):
        (tmp_path / name).write_text(WORK)
    code, out, err = flowopd("report", *(word.format(w=world, t=tmp_path) for word in argv))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert (tmp_path / "mine.html").read_text() == WORK


def test_the_files_of_a_comparison_replace_no_others(flowopd, world, tmp_path):
    runs, folder = [world / "t-one", world / "student"], tmp_path / "paper"
    folder.mkdir()
    for name in ("table.tex", "second.table.tex"):
        (folder / name).write_text(WORK)
    first = ["report", *runs, "--out", folder / "first.html"]
    code, out, _ = flowopd(*first, "--json")
    assert (code, json.loads(out)["files"]) == (0, [str(folder / f"first.{name}") for name in table.NUMBERS])
    for page in (folder / "second.html", folder / "report.html"):
        code, out, err = flowopd("report", *runs, "--out", page)
        assert (code, out, page.exists(), len(err.splitlines())) == (2, "", False, 1)
        assert "table.tex: is not a file of an earlier report, or was changed; move it" in err
    assert (folder / "table.tex").read_text() == (folder / "second.table.tex").read_text() == WORK
    assert flowopd("report", runs[0], world / "t-two", "--out", folder / "first.html")[0] == 0  # its own files
    assert "student" not in (folder / "first.table.md").read_text()
    (folder / "first.table.md").write_text("with a caption")
    assert flowopd(*first)[0] == 2
    assert (folder / "first.table.md").read_text() == "with a caption"
