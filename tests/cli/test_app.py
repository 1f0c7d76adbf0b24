"""Errors as exit codes and one line on stderr, and how fast a command starts."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowopd_cli.cli import app as cli
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.run import RunDir

ROOT = Path(cli.__file__).resolve().parents[2]


@pytest.fixture
def package_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("package_on_path")
@pytest.mark.parametrize(
    ("argv", "limit"),
    [(("--help",), 0.4), pytest.param(("runs", "ls", "."), 0.5, marks=pytest.mark.slow)],  # 0.4 on an idle machine
)
def test_light_commands_start_fast(tmp_path, argv, limit):
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "flowopd_cli", *argv]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < limit


def seconds_until(text, *argv):
    """Until a fresh interpreter has printed a text, and until it has ended."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flowopd_cli", *map(str, argv)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        assert any(text in line for line in lines)
        first = time.perf_counter() - started
        assert "memory" in "".join(lines)
    assert process.returncode == 0
    return first, time.perf_counter() - started


@pytest.mark.slow  # a time that only an idle machine keeps
@pytest.mark.usefixtures("package_on_path")
def test_dry_run_prints_its_arithmetic_at_once_and_its_memory_soon(workplace):
    recipe = workplace / "recipes/toy/teacher-geneval.yaml"
    first, whole = min(seconds_until("optimizer steps", "teacher", "--recipe", recipe, "--dry-run") for _ in range(3))
    assert first < 1.5
    assert whole < 8


@pytest.mark.usefixtures("package_on_path")
def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['flowopd', '--help']\nfrom flowopd_cli.cli.app import main\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code or 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_version(flowopd):
    assert flowopd("--version")[1].startswith("flowopd 0.")


def test_an_unknown_flag_is_exit_code_2(flowopd):
    assert flowopd("teacher", "--rewrad", "geneval")[0] == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArtifactError("a: was trained\non another base"), 2, "a: was trained on another base"),
        (
            OSError(28, "No space left on device", "/full/x?token=S3CRET"),
            2,
            "/full/x?token=***: No space left on device",
        ),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_an_error_of_a_stage_is_one_line_and_fails_the_run(flowopd, stage, error, code, message):
    stage("teacher", error)
    found, out, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert (found, out, err.splitlines()[-1]) == (code, "", f"flowopd: error: {message}")
    assert RunDir.open("r").manifest().status == "failed"


@pytest.mark.usefixtures("workplace")
def test_an_error_of_the_program_keeps_its_traceback(stage, monkeypatch):
    stage("teacher", ZeroDivisionError())
    monkeypatch.setattr(sys, "argv", ["flowopd", "teacher", "--reward", "geneval", "--out", "r"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
    assert RunDir.open("r").manifest().status == "failed"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("flag", ["--adapter", "--recipe", "--base", "--images", "--import-scores", "--resume"])
def test_names_that_no_file_can_have_are_one_line(flowopd, flag):
    code, _, err = flowopd("eval", flag, "x" * 5000)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 6000
