"""``flowopd watch``: a run that starts, continues, goes back, ends or is killed."""

import json
import math
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.commands import watch as cli_watch
from flowopd_cli.reports.watch import look, sparkline
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import LOCK, MANIFEST
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import plain


@pytest.fixture
def run(tmp_path):
    """A training of ten iterations that has begun."""
    run = RunDir.create(tmp_path / "r", "teacher")
    run.start(recipes.load(recipes.find("toy/teacher-ocr"), overrides=["train.iterations=10"]))
    yield run
    run._lock.release()


def row(iteration, **more):
    return {"iteration": iteration, "reward": iteration / 10, "seconds_collect": 1.5, "seconds_learn": 0.5, **more}


def test_sparkline():
    assert sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([0, math.nan, 7], 3) == "▁ █"
    assert sparkline([3, 3], 2) == "▄▄"
    assert sparkline([math.nan], 5) == " "
    assert sparkline([], 5) == ""


def test_half_written_and_damaged_lines_are_skipped(run):
    run.metrics_file.write_text('{"iteration": 1}\nnot JSON\n[3]\n{"iteration": 2}\n{"iter')
    assert look(run.path).done == 2


def test_views_from_before_a_run_to_its_end(run):
    path, manifest = run.path, (run.path / MANIFEST).read_bytes()
    (run.path / MANIFEST).unlink()
    assert (look(path).status, look(path).ended) == ("waiting", False)
    (run.path / MANIFEST).write_bytes(manifest)
    view = look(run.path)
    assert (view.status, view.stage, view.done, view.total, view.eta) == ("running", "teacher", 0, 10, None)
    assert view.progress == ""
    for iteration in (1, 2, 3, 4):
        run.log(row(iteration, loss=float("nan")))
    run.log_event(4, "warning", "the reward\nstands still")
    view = look(run.path)
    assert (view.done, view.seconds, view.eta) == (4, 2.0, 12.0)
    assert view.progress == "iteration 4 of 10, reward 0.4000"
    curves = {name: plain(values) for name, values in view.curves.items()}
    assert curves == {"reward": [0.1, 0.2, 0.3, 0.4], "loss": [None] * 4}
    assert view.events == ["iteration 4: warning: the reward\nstands still"]
    run.go_back(2)
    run.log(row(3, loss=1.0))
    view = look(run.path)
    assert [plain(values) for values in view.curves.values()] == [[0.1, 0.2, 0.3], [None, None, 1.0]]
    assert view.events == []
    run.samples_dir.mkdir()
    for name in ("000001.png", "000002.png", "000003.png", "000004.png"):
        (run.samples_dir / name).touch()
    run.finish("done", {})
    view = look(run.path)
    assert (view.status, view.ended, view.eta) == ("done", True, None)
    assert [Path(sample).name for sample in view.samples] == ["000002.png", "000003.png", "000004.png"]


def test_watched_figures_have_a_value_for_each_watch(run):
    run.log({"iteration": 0, "step": 0, "watch/brightness": 0.5, "seconds_watch": 9.0})
    for iteration in range(1, 41):
        watched = {"watch/brightness": 0.5 + iteration / 100} if iteration == 10 else {}
        run.log(row(iteration, **watched))
    view = look(run.path)
    assert view.curves["watch/brightness"] == [0.5, 0.6]
    assert len(view.curves["reward"]) == view.done == 40
    assert view.as_json()["figures"]["watch/brightness"] == 0.6


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        (lambda run: run.finish("done"), 0, "done"),
        (lambda run: run.finish("failed"), 3, "failed"),
        (lambda run: run._lock.release(), 3, "interrupted"),  # killed: nobody holds its lock
    ],
)
def test_watch_follows_a_run_to_its_end(run, flowopd, monkeypatch, end, code, status):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    iterations = iter(range(1, 20))

    def goes_on(seconds):
        assert seconds == 0.5
        run.log(row(next(iterations)))
        if len(run.rows()) == 3:
            end(run)

    monkeypatch.setattr(cli_watch.time, "sleep", goes_on)
    found, out, err = flowopd("watch", run.path, "--every", "0.5", "--json")
    assert found == code
    assert json.loads(out)["done"] == 3
    assert json.loads(out)["figures"] == {"reward": 0.3}
    assert status in err
    assert "3/10" in err


def test_ctrl_c_leaves_the_run_alone(run, flowopd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(cli_watch.time, "sleep", Mock(side_effect=KeyboardInterrupt))
    before = (run.path / MANIFEST).read_bytes()
    code, out, err = flowopd("watch", run.path)
    assert (code, out) == (130, "")
    assert f"stopped watching; the run continues: {run.path}" in err
    assert (run.path / MANIFEST).read_bytes() == before
    assert look(run.path).status == "running"


def test_once_shows_one_view(run, flowopd, tmp_path):
    run.log(row(1, kl=0.25))
    code, out, err = flowopd("watch", run.path, "--once")
    assert (code, out) == (0, "")
    assert "teacher  running" in err
    assert "1/10  2.00 s an iteration  about 18 s to go" in err
    assert flowopd("watch", run.path)[0] == 0
    run.finish("failed")
    assert flowopd("watch", run.path)[0] == 3
    code, out, err = flowopd("watch", tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert "there is no run at" in err
    (tmp_path / "file").touch()
    assert flowopd("watch", tmp_path / "file")[0] == 2


def test_another_folder_is_refused(flowopd, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(cli_watch.time, "sleep", Mock(side_effect=AssertionError("it waits")))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / LOCK).write_text("left by a process that is gone")
    assert look(folder).status == "waiting"
    (folder / "notes.txt").touch()
    code, out, err = flowopd("watch", folder)
    assert (code, out) == (2, "")
    assert f"{folder}: not a run directory" in err
    (folder / LOCK).unlink()
    lock = Lock(folder / LOCK)
    lock.acquire()  # another command is replacing a run there
    assert look(folder).status == "waiting"
    lock.release()


def test_all_events_of_an_iteration_are_shown(run):
    run.log_event(1, "warning", "early")
    run.log_event(3, "skipped", "one")
    run.log_event(3, "warning", "two")
    assert [text.rpartition(" ")[2] for text in look(run.path).events] == ["early", "one", "two"]
    run.go_back(2)
    assert [text.rpartition(" ")[2] for text in look(run.path).events] == ["early"]


def test_names_are_printed_without_control_characters(run, flowopd):
    run.log(row(1, **{"reward/\x1b[2J[red]": 1.0}))
    run.log_event(1, "warning", "\x1b]0;title\x07")
    err = flowopd("watch", run.path)[2]
    assert "\x1b" not in err
    assert "reward/\\x1b[2J[red]" in err


def test_an_evaluation_shows_scored_pictures(tmp_path):
    run = RunDir.create(tmp_path / "e", "eval")
    run.start(recipes.load(recipes.find("toy/eval")))
    run.scored_dir.mkdir(parents=True)
    (run.scored_dir / "0.jsonl").write_text("{}\n{}\n{}")
    assert look(run.path).results == {"scored (0)": "2 pictures"}
    run._lock.release()
