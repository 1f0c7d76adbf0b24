"""The life of a command: dry run, run, result, interruption and resume."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flowopd_cli.cli import launch
from flowopd_cli.cli.demo import Demo
from flowopd_cli.errors import Interrupted
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import Group

pytestmark = pytest.mark.usefixtures("workplace")
TEACHER = ("teacher", "--reward", "geneval")
LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_dry_run_prints_recipe_and_arithmetic_and_writes_nothing(flowopd, tmp_path):
    code, out, err = flowopd(*TEACHER, "--dry-run", "--out", "r")
    assert (code, err) == (0, "")
    reward = {"name": "toy-geneval", "weight": 1.0, "task": None, "options": {"threshold": 0.25}}
    assert yaml.safe_load(out)["rewards"] == [reward]
    assert "#   optimizer steps" in out
    assert not (tmp_path / "r").exists()


def test_dry_run_as_json(flowopd):
    _, out, _ = flowopd("distill", "--dry-run", "--json", "--set", "train.iterations=4", "--beta", "0.5", "--seed", "9")
    result = json.loads(out)
    assert result["arithmetic"]["optimizer steps"] == 8
    assert (result["recipe"]["anchor"]["beta"], result["recipe"]["seed"]) == (0.5, 9)


def test_a_run_prints_its_path_alone_and_closes_its_manifest(flowopd, stage, tmp_path):
    calls = stage("teacher")
    code, out, err = flowopd(*TEACHER, "--out", "r")
    assert (code, out) == (0, "r\n")
    assert "a library that prints" in err
    manifest = RunDir.open(tmp_path / "r").manifest()
    assert (manifest.status, manifest.metrics) == ("done", {"reward": 0.5})
    assert calls[0].options == {"resume": False}


def test_json_result_and_fresh_name(flowopd, stage):
    stage("teacher")
    result = json.loads(flowopd(*TEACHER, "--json", "--quiet")[1])
    assert result["run"].startswith("runs/teacher-")
    assert result["metrics"] == {"reward": 0.5}


def test_a_used_directory_needs_resume_or_force(flowopd, stage):
    stage("teacher")
    flowopd(*TEACHER, "--out", "r")
    code, out, err = flowopd(*TEACHER, "--out", "r")
    assert (code, out) == (2, "")
    assert "--resume r" in err
    assert flowopd(*TEACHER, "--out", "r", "--force")[0] == 0


def test_an_earlier_run_with_guidance_under_1_resumes(flowopd, stage, tmp_path):
    stage("teacher", Interrupted("stopped after iteration 1 of 3"))
    flowopd(*TEACHER, "--out", "r")
    recipe = tmp_path / "r/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("guidance: 4.5", "guidance: 0.5"))
    calls = stage("teacher")
    assert flowopd("teacher", "--resume", "r")[:2] == (0, "r\n")
    assert calls[0].recipe.sampling.guidance == 0.5


def test_an_interrupted_run_names_the_command_that_resumes_it(flowopd, stage, tmp_path):
    stage("teacher", Interrupted("stopped after iteration 1 of 3"))
    code, out, err = flowopd(*TEACHER, "--out", "r")
    assert (code, out) == (130, "")
    assert "stopped after iteration 1 of 3; resume with: flowopd teacher --resume r" in err
    assert RunDir.open(tmp_path / "r").manifest().status == "interrupted"

    calls = stage("teacher")
    assert flowopd("distill", "--resume", "r")[0] == 2
    code, out, err = flowopd("teacher", "--resume", "r", "--set", "train.weight_decay=1", "--set", "train.micro=2")
    assert (code, out, calls) == (2, "", [])
    assert "--set train.weight_decay: r keeps its settings; on --resume only adapter.copies, adapter.targets, " in err
    assert flowopd("teacher", "--resume", "r", "--set", "train.iterations=7", "--processes", "1")[:2] == (0, "r\n")
    assert (calls[0].options, calls[0].recipe.train.iterations) == ({"resume": True}, 7)
    assert RunDir.open(tmp_path / "r").recipe().train.iterations == 7
    code, out, err = flowopd("teacher", "--resume", "r")
    assert (code, out, len(calls)) == (0, "r\n", 1)
    assert "already done" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_the_loop_interrupts_too(flowopd, monkeypatch, tmp_path, number, code):
    def run(*_, **rest):
        os.kill(os.getpid(), number)
        time.sleep(5)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "flowopd_cli.stages.eval", SimpleNamespace(run=run))
    found, _, err = flowopd("eval", "--out", "r")
    assert found == code
    assert "stopped; resume with: flowopd eval --resume r" in err
    assert RunDir.open(tmp_path / "r").manifest().status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_push_that_began_as_a_dry_run_stays_one(flowopd, stage, trained):
    trained("a")
    stage("push", Interrupted("stopped"))
    code, _, err = flowopd("push", "a", "--repo", "me/m", "--dry-run", "--out", "p")
    assert (code, err.strip().rpartition(": ")[2]) == (130, "flowopd push --resume p --dry-run")
    assert flowopd("push", "a", "--dry-run", "--out", "q")[0] == 130
    _, _, err = flowopd("push", "a", "--repo", "me/m", "--out", "u")
    assert err.strip().rpartition(": ")[2] == "flowopd push --resume u"
    calls = stage("push")
    assert flowopd("push", "--resume", "p")[:2] == (0, "p\n")
    assert flowopd("push", "--resume", "q")[:2] == (0, "q\n")
    assert [(call.recipe.push.dry_run, call.options["resume"]) for call in calls] == [(True, True)] * 2
    code, _, err = flowopd("push", "--resume", "p")
    assert (code, len(calls)) == (0, 2)
    assert "p is already done; nothing was uploaded: push again without --dry-run, with another --out" in err
    assert flowopd("push", "--resume", "p", "--set", "push.dry_run=false")[0] == 0
    assert flowopd("push", "--resume", "u", "--dry-run")[0] == 0
    assert [call.recipe.push.dry_run for call in calls[2:]] == [False, True]


def test_demo_prints_the_report_or_json(flowopd, monkeypatch):
    demos, result = [], {"report": "demo/report.html", "models": {}, "faults": {}}
    monkeypatch.setattr(Demo, "run", lambda demo, progress: demos.append(demo) or result)
    assert flowopd("demo", "--out", "d", "--quick", "--seed", "3")[1] == "demo/report.html\n"
    assert json.loads(flowopd("demo", "--baseline", "--ablation", "--jobs", "4", "--json")[1]) == result
    assert demos[0] == Demo(Path("d"), seed=3, quick=True)
    assert demos[1] == Demo(demos[1].out, baseline=True, ablation=True, jobs=4)


def test_several_processes_run_the_same_command_again(flowopd, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, "relaunch", lambda argv, processes, device: calls.append((argv, processes)) or 7)
    assert flowopd(*TEACHER, "--processes", "2")[:2] == (7, "")
    [(argv, processes)] = calls
    assert (processes, argv[:4], argv[-2]) == (2, [*TEACHER, "--processes"], "--out")


def test_a_launched_copy_above_rank_0_writes_and_prints_nothing(flowopd, stage, monkeypatch, tmp_path):
    calls = stage("teacher")
    for name, value in {**LAUNCHED, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Group, "start", lambda group: None)
    monkeypatch.setattr(Group, "exchange", lambda group, value: [value] * group.size)
    assert flowopd(*TEACHER, "--processes", "2", "--out", "r")[:2] == (0, "")
    assert calls[0].run.writes is False
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "numbers",
    [{"RANK": "3"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"LOCAL_RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}],
)
def test_numbers_without_a_launcher_are_ignored_with_a_note(flowopd, stage, monkeypatch, numbers):
    calls = stage("teacher")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", **numbers}.items():
        monkeypatch.setenv(name, value)
    code, out, err = flowopd(*TEACHER, "--out", "r")
    assert (code, out) == (0, "r\n")
    assert calls[0].run.writes
    (note,) = [line for line in err.splitlines() if line.startswith("note: ")]
    assert all(f"{name}={value}" in note for name, value in numbers.items())
    assert "WORLD_SIZE" not in os.environ


def test_a_local_rank_without_a_launcher_does_not_stop_processes_from_starting(flowopd, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, "relaunch", lambda argv, processes, device: calls.append(processes) or 0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert flowopd(*TEACHER, "--processes", "2")[0] == 0
    assert calls == [2]


def test_another_number_of_processes_than_the_launcher_started_is_refused(flowopd, stage, monkeypatch):
    stage("teacher")
    for name, value in {**LAUNCHED, "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = flowopd(*TEACHER, "--processes", "2")
    assert (code, err) == (2, "flowopd: error: --processes 2: a launcher started 1; leave out --processes\n")


def test_an_error_of_one_process_alone_is_printed_by_it(flowopd, stage, monkeypatch):
    stage("teacher")
    for name, value in {**LAUNCHED, "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = flowopd(*TEACHER, "--set", "train.iterations=0")
    assert code == 2
    assert err.startswith("flowopd: error: process 1 of 2: ")
