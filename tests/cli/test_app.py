"""Errors as exit codes and one line on stderr, and how fast a command starts."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from flowopd_cli.cli import app as cli
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.run import RunDir

ROOT = Path(cli.__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "limit"),
    [(("--help",), 0.4), pytest.param(("runs", "ls", "."), 0.5, marks=pytest.mark.slow)],  # 0.4 on an idle machine
)
def test_light_commands_start_fast(monkeypatch, tmp_path, argv, limit):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "flowopd_cli", *argv]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < limit


def test_version(flowopd):
    assert flowopd("--version")[1].startswith("flowopd 0.")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ArtifactError("a: was trained\non another base"), "a: was trained on another base"),
        (OSError(28, "No space left", "/full/x?token=S3CRET"), "/full/x?token=***: No space left"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_an_error_of_a_stage_is_one_line_and_fails_the_run(flowopd, stage, error, message):
    stage("teacher", error)
    code, out, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert (code, out, err.splitlines()[-1]) == (2, "", f"flowopd: error: {message}")
    assert RunDir.open("r").manifest().status == "failed"


@pytest.mark.usefixtures("workplace")
def test_an_error_of_the_program_keeps_its_traceback(stage, monkeypatch):
    stage("teacher", ZeroDivisionError())
    monkeypatch.setattr(sys, "argv", ["flowopd", "teacher", "--reward", "geneval", "--out", "r"])
    with pytest.raises(ZeroDivisionError):
        cli.run()
    assert RunDir.open("r").manifest().status == "failed"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("flag", ["--adapter", "--recipe", "--base", "--images", "--import-scores", "--resume"])
def test_names_that_no_file_can_have_are_one_line(flowopd, flag):
    code, _, err = flowopd("eval", flag, "x" * 5000)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 6000
