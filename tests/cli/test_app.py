"""Errors as exit codes and one line on stderr, and how fast a command starts."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

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


def commands(command, path=()):
    """Every command below a group, with the words that call it."""
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))
    if not getattr(command, "commands", None):
        yield path, command


@pytest.mark.parametrize(
    "path_and_command", commands(typer.main.get_command(cli.app)), ids=lambda pair: "-".join(pair[0])
)
def test_an_option_that_takes_one_value_is_refused_if_it_is_repeated(flowopd, path_and_command):
    path, command = path_and_command
    for option in command.params:
        if option.param_type_name != "option" or option.multiple or option.is_eager:
            continue
        if option.is_flag and not option.secondary_opts:
            continue
        words = [[option.opts[0]], [option.secondary_opts[0]]] if option.is_flag else [[option.opts[0], "1"]] * 2
        code, out, err = flowopd(*path, *words[0], *words[1])
        assert (code, out) == (2, "")
        assert f"{option.opts[0]}: is given 2 times and takes one value" in err


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("eval --fail-under ocr=0.5 --fail-under ocr=0.6", "ocr"),
        ("distill --teacher ocr=base,guidance=1,guidance=2", "guidance"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(flowopd, argv, name):
    code, out, err = flowopd(*argv.split())
    assert (code, out) == (2, "")
    assert f"{name}: is given twice" in err or f"{name} is given twice" in err


def test_the_last_of_two_overrides_of_a_field_counts_with_a_note(flowopd):
    argv = ["teacher", "--reward", "geneval", "--set", "train.lr=1", "--set", "seed=3", "--set", "train.lr=2"]
    code, out, err = flowopd(*argv, "--dry-run", "--json")
    assert (code, json.loads(out)["recipe"]["train"]["lr"]) == (0, 2)
    assert err.splitlines()[0] == "note: --set train.lr: is given 2 times, the last counts"
    assert err.count("is given") == 1
    assert "is given" not in flowopd(*argv, "--dry-run", "--json", "--quiet")[2]


def test_suites_may_be_repeated(flowopd):
    argv = ["eval", "--suite", "ocr", "--suite", "quality, ocr", "--dry-run", "--json"]
    assert json.loads(flowopd(*argv)[1])["recipe"]["eval"]["suites"] == ["toy-ocr", "toy-quality"]


@pytest.mark.parametrize("argument", ["~/p.jsonl", "--out=~/p.jsonl"])
def test_the_home_folder_is_known_where_the_shell_does_not_expand_it(monkeypatch, tmp_path, flowopd, argument):
    monkeypatch.setenv("HOME", str(tmp_path))
    argv = [argument] if argument.startswith("--") else ["--out", argument]
    assert flowopd("prompts", "make", "ocr", "--n", "1", *argv)[:2] == (0, f"{tmp_path}/p.jsonl\n")
    assert (tmp_path / "p.jsonl").is_file()


def test_the_home_folder_is_known_inside_arguments_and_recipes(monkeypatch, tmp_path, flowopd):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("stage: distill\nadapter: {init: ~/r}\nprompts: [{source: 'toy:all'}]\n")
    argv = ["--recipe=~/mine.yaml", "--teacher", "ocr=~/o,guidance=2", "--teacher", "geneval=~/g", "--anchor=~/a"]
    code, out, err = flowopd("distill", *argv, "--base", "toy", "--dry-run", "--json")
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    refs = [recipe["adapter"]["init"], *(spec["ref"] for spec in recipe["routing"].values()), recipe["anchor"]["ref"]]
    assert refs == [f"{tmp_path}/{name}" for name in "roga"]
