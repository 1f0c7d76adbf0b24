"""``flowopd study``: what it prints, its exit codes, its folder; on real stages, killed and resumed."""

import csv
import json
import os
import signal
import time

import pytest
import yaml
from support import commands, toyruns

from flowopd_cli.cli.study import pool
from flowopd_cli.runs import inspect as runs
from flowopd_cli.runs.run import RunDir

SUITES = ("geneval", "ocr", "preference", "quality")


@pytest.fixture
def study(flowopd, place):
    """Runs the command on the study of ``place``."""
    return lambda *more: flowopd("study", place.file, "--out", place.out, "--store", place.store, *more)


def results(folder):
    """The rows of the table, without what a clock says."""
    with (folder / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("cpu_")} for row in csv.DictReader(file)]


def test_the_results_are_a_row_for_each_cell_and_seed(study, place):
    place.write(seeds=[0, 1])
    code, out, err = study("--jobs", 2)
    assert (code, out) == (0, f"{place.out}/report.html\n"), err
    assert "10 of 10)" in err
    rows = results(place.out)
    assert [(row["lambda"], row["seed"]) for row in rows] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert {*SUITES, "average", "run"} < set(rows[0])
    assert float(rows[0]["average"]) == pytest.approx(sum(float(rows[0][name]) for name in SUITES) / len(SUITES))
    written = json.loads((place.out / "results.json").read_text())
    assert all(row["cpu_seconds"] > row["cpu_seconds.student"] > 0 for row in written)
    assert (place.out / "study.yaml").read_text() == place.file.read_text()
    code, out, _ = study("--json")
    assert json.loads(out) == {"report": f"{place.out}/report.html", "cells": 4, "of": 4, "faults": {}}
    assert len(place.calls()) == 10
    assert results(place.out) == rows


def test_a_dry_run_prints_the_runs_and_makes_nothing(study, place):
    code, out, err = study("--dry-run")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 6)
    assert lines[0].split() == ["RUN", "WHAT", "STATUS"]
    assert [line.split()[-1] for line in lines[1:]] == ["absent"] * 5
    assert "student: lambda 1, seed 0" in out
    assert "5 runs for 2 cells, 0 of them done" in err
    assert not place.out.exists()
    assert not place.store.exists()
    study("--shard", "1/2")
    _, out, _ = study("--dry-run", "--json")
    assert [row["status"] for row in json.loads(out)["runs"]] == ["done"] * 3 + ["absent"] * 2


def test_a_failed_run_is_named_at_the_end(study, place):
    place.order(extrapolate_1="fail")
    code, out, err = study()
    assert (code, out) == (3, f"{place.out}/report.html\n")
    line = err.splitlines()[-1]
    assert line.startswith("1 runs failed, 1 were skipped; the first: distill-")
    assert "it was told to fail" in line
    assert ".log). Repeat the command to try them again" in line
    assert len(results(place.out)) == 1
    page = (place.out / "report.html").read_text()
    assert "1 of 2 cells have no result yet" in page
    assert "it was told to fail" in page
    place.order()
    assert study()[0] == 0
    assert len(results(place.out)) == 2


def test_shards_together_are_the_whole(study, place):
    for part in (1, 2):
        code, _, err = study("--shard", f"{part}/2")
        assert code == 0, err
        assert len(results(place.out)) == part
    assert len(place.calls()) == 5
    for text in ("0/3", "4/3", "1", "a/b"):
        assert study("--shard", text)[0] == 2


def test_studies_of_one_store_share_their_runs(study, place, flowopd):
    study()
    place.write(axes={"lambda": [2, 3]})
    code, _, err = flowopd("study", place.file, "--out", place.out.with_name("other"), "--store", place.store)
    assert code == 0, err
    assert len(place.calls()) == 7


def test_a_folder_of_something_else_is_refused(study, place):
    place.out.mkdir()
    (place.out / "thesis.tex").write_text("years of work")
    code, _, err = study()
    assert (code, place.calls()) == (2, [])
    assert f"{place.out}: is not empty and holds no study" in err


def test_a_faulty_study_runs_nothing(study, place):
    place.write(axes={"lambda": [1, -2]})
    code, _, err = study()
    assert (code, place.calls(), place.out.exists()) == (2, [], False)
    assert "stages.student: opd.extrapolate: Input should be greater than 0, not -2" in err


def test_shipped_studies_resolve(flowopd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = flowopd("study", "extrapolation", "--out", "x", "--dry-run", "--json")
    assert code == 0, err
    tree = json.loads(out)
    assert (tree["cells"], len(tree["runs"])) == (12, 39)
    code, _, err = flowopd("study", "extrapolatoin", "--out", "x")
    assert "did you mean 'studies/extrapolation'?" in err


TINY = {"train.iterations": 3, "train.groups": 2, "sampling.steps": 2, "train.sample_every": 0}
REAL = {
    "axes": {"lambda": [1, 2]},
    "stages": {
        "teacher": {
            "recipe": "toy/teacher-quality",
            "set": {**TINY, "train.group_size": 2, "adapter.rank": 2, "adapter.alpha": 2},
        },
        "student": {
            "recipe": "toy/distill",
            "set": {
                **TINY,
                "train.iterations": 20,
                "train.checkpoint_every": 2,
                "adapter.init": "$teacher",
                "routing": {task: {"ref": "$teacher"} for task in ("geneval", "ocr", "preference")},
                "anchor.beta": 0,
                "opd.extrapolate": "$lambda",
            },
        },
        "scores": {
            "recipe": "toy/eval",
            "set": {"adapter": "$student", "eval.limit": 2, "eval.images": 1, "eval.steps": 2},
        },
    },
}


@pytest.mark.slow
def test_real_stages_killed_in_the_middle_give_the_same_table(tmp_path, monkeypatch):
    """Once the study is killed, once a stage of it; each of the ten processes imports the libraries."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(REAL))
    whole = commands.started("study", file, "--out", "whole", "--jobs", 2)
    assert whole.communicate(timeout=600)[0] == "whole/report.html\n"
    students = sorted(path for path in (tmp_path / "whole/nodes").glob("distill-*") if path.is_dir())

    killed = commands.started("study", file, "--out", "killed")
    (one, two) = (tmp_path / "killed/nodes" / path.name for path in students)
    first = one if wait_for_either(killed, one, two) == one else two
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    second = commands.started("study", file, "--out", "killed")
    other = two if first == one else one
    commands.wait_for_rows(other, second, 5)
    (child,) = commands.descendants(second.pid) - {second.pid}
    os.kill(child, signal.SIGKILL)
    _, err = second.communicate(timeout=600)
    assert second.returncode == 3
    assert f"{other.name} failed, killed by signal 9" in err
    third = commands.started("study", file, "--out", "killed", "--json")
    out, err = third.communicate(timeout=600)
    assert (third.returncode, json.loads(out)["cells"]) == (0, 2), err

    table = results(tmp_path / "whole")
    assert [{**row, "run": row["run"].replace("killed", "whole")} for row in results(tmp_path / "killed")] == table
    assert table[0]["quality"] != table[1]["quality"]
    for student in students:
        copy = tmp_path / "killed/nodes" / student.name
        assert toyruns.figures(copy) == toyruns.figures(student)
        assert [finding.fault for finding in runs.verify(copy) if not finding.ok] == []
        assert len(pool.cpu_seconds(copy)) == 2


def wait_for_either(process, *paths, rows=5):
    """Which of several runs has so many rows first."""
    deadline = time.monotonic() + 300
    while True:
        for path in paths:
            if len(RunDir(path).rows()) >= rows:
                return path
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
