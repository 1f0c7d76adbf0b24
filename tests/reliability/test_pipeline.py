"""``recipes/pipeline.sh`` as a shell runs it, on the smallest toy; its ``flowopd`` is a fork of the tests' server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import toyruns

from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "pipeline.sh"
SMALL = " ".join(text.replace(" ", "") for text in toyruns.SMALL if "keep_best" not in text)
SETTINGS = {
    "TEACHER_SET": SMALL.replace("iterations=5", "iterations=2"),
    "START_SET": "merge.rank=2",
    "DISTILL_SET": SMALL.replace("iterations=5", "iterations=2"),
    "EVAL_SET": "eval.limit=2 eval.images=1 eval.steps=2",
    "PUSH_SET": "push.verify_steps=1",
}
TEACHERS = ["teacher-geneval", "teacher-ocr", "teacher-preference", "teacher-quality"]
STAGES = [*TEACHERS, "merge", "student", "eval-base", "eval-student"]
SHIM = """#!{python} -SE
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
link.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
code, out, err = json.loads(link.makefile().readline())
os.write(1, out.encode())
os.write(2, err.encode())
sys.exit(code)
"""


@contextmanager
def command(folder, answer):
    """A program ``flowopd`` in ``folder`` whose command lines go to ``answer``: words to exit code, stdout, stderr."""
    path = str(folder / "socket")
    program = folder / "flowopd"
    program.write_text(SHIM.format(python=sys.executable, path=path))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as heard:
        Path(path).unlink(missing_ok=True)
        heard.bind(path)
        heard.listen()

        def serve():
            while True:
                try:
                    link, _ = heard.accept()
                except OSError:
                    return
                with link, link.makefile("rw") as both:
                    both.write(json.dumps(answer(json.loads(both.readline()))) + "\n")

        threading.Thread(target=serve, daemon=True).start()
        yield folder
        heard.shutdown(socket.SHUT_RDWR)


class Shell:
    """Runs the script; ``asked`` are the command lines of the last time."""

    def __init__(self, forks, folder):
        self._forks, self._folder, self.calls = forks, folder, []
        self.runs, self._kill_at = folder / "runs", None

    def __call__(self, kill_at=None, **settings):
        self.calls, self._kill_at = [], kill_at
        with command(self._folder, self._answer) as programs:
            given = {
                **os.environ,
                **SETTINGS,
                "RUNS": str(self.runs),
                **settings,
                "PATH": f"{programs}:{os.environ['PATH']}",
            }
            return subprocess.run(["bash", SCRIPT], env=given, capture_output=True, text=True, check=False)

    def _answer(self, words):
        from support.forks import Kill

        self.calls.append(words)
        kill = Kill(change=40) if words[0] == self._kill_at and not only_reads(words) else None
        ended = self._forks.run(*words, kill=kill, below=self.runs if kill else None)
        return ended.code % 256, ended.out, ended.err

    def stages(self):
        """The stages that were asked for, with how: made, gone on with."""
        return [(words[0], "--resume" in words) for words in self.calls if not only_reads(words)]


def only_reads(words):
    """Whether a command only reads or checks."""
    return words[0] in {"runs", "recipes"} or (words[0] == "distill" and "--dry-run" in words)


@pytest.fixture(scope="module")
def shell(forks, tmp_path_factory):
    return Shell(forks, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def made(shell):
    """The first call: it is killed in the distillation."""
    return shell(kill_at="distill")


def test_the_exit_code_is_that_of_a_killed_stage(made, shell):
    assert made.returncode == 247, made.stderr  # 256 less SIGKILL, as the program here says it
    assert made.stdout == ""
    assert [name for name, _ in shell.stages()] == ["teacher"] * 4 + ["merge", "distill"]
    for name in STAGES[:5]:
        assert status_now(shell.runs / name) == "done"


def test_a_second_call_resumes_and_finishes(made, shell):
    done = shell(FAIL_UNDER="geneval=0.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{shell.runs}/push-preview\n"
    resumed = dict(zip([words[-1] for words in shell.calls if words[0] == "runs"], shell.stages(), strict=True))
    assert [Path(name).name for name in resumed] == [*STAGES, "push-preview"]
    assert resumed[f"{shell.runs}/teacher-ocr"] == ("teacher", True)
    assert resumed[f"{shell.runs}/eval-student"] == ("eval", False)
    runs = {name: RunDir.open(shell.runs / name) for name in (*STAGES, "push-preview")}
    assert all(status_now(run.path) == "done" for run in runs.values())
    roles = {parent.role: Path(parent.ref).name for parent in runs["student"].manifest().parents}
    assert roles["init"] == "merge"
    assert sorted(roles.values()) == ["merge", *TEACHERS]
    assert (runs["push-preview"].hub_dir / "README.md").is_file()
    push = runs["push-preview"].recipe().push
    assert [Path(path).name for path in push.evaluations] == ["eval-base", "eval-student"]
    assert push.dry_run
    assert "| base |" in (runs["push-preview"].hub_dir / "README.md").read_text()


def test_finished_stages_are_not_repeated_and_a_new_threshold_applies(made, shell):
    under = shell(FAIL_UNDER="geneval=1.1")
    assert (under.returncode, under.stdout) == (3, ""), under.stderr
    assert "is under 1.1" in under.stderr
    assert [resumed for _, resumed in shell.stages()] == [True] * len(STAGES)


def test_a_killed_publication_is_resumed_with_its_settings(made, shell):
    shutil.rmtree(shell.runs / "push-preview")
    assert shell(kill_at="push").returncode == 247
    assert status_now(shell.runs / "push-preview") == "interrupted"
    assert (shell.runs / "push-preview" / "recipe.yaml").is_file()
    done = shell()
    assert (done.returncode, done.stdout) == (0, f"{shell.runs}/push-preview\n"), done.stderr
    assert all(resumed for _, resumed in shell.stages())
    assert "--dry-run" in shell.calls[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ANCHOR": "deqa"}, "toy/teacher-deqa"),
        ({"VARIANT": "-1gpu"}, "toy/distill-1gpu"),
        ({"EVAL_RECIPE": "toy/evil"}, "toy/evil"),
        ({"TASKS": "geneval"}, "prompts of task 'ocr' have no teacher"),
        ({"DISTILL_SET": "train.micro=*"}, "train.micro"),
    ],
)
def test_invalid_settings_are_refused_before_any_stage(shell, tmp_path, settings, words):
    done = shell(RUNS=str(tmp_path), **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert shell.stages() == []
    assert list(tmp_path.iterdir()) == []


def test_another_family_has_its_own_tasks_and_anchor(tmp_path):
    calls = []

    def answer(words):
        calls.append(words)
        return (9 if words[0] == "teacher" else 0), "absent\n" if words[0] == "runs" else "", ""

    with command(tmp_path, answer):
        given = {**os.environ, "SHELF": "sd35m", "VARIANT": "-1gpu", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", SCRIPT], env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    shown = {words[-1] for words in calls if words[0] == "recipes"}
    teachers = {f"sd35m/teacher-{name}-1gpu" for name in ("geneval", "ocr", "pickscore", "deqa")}
    assert shown == {*teachers, "sd35m/distill-1gpu", "sd35m/eval-all", "sd35m/merge"}
    (checked,) = [words for words in calls if words[0] == "distill"]
    assert [word for word in checked if "=" in word] == ["geneval=base", "ocr=base", "pickscore=base"]


def test_an_unknown_start_is_refused_before_any_stage(tmp_path):
    given = {**os.environ, "START": "nothing", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPT], env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "START=nothing: write merge or coldstart" in done.stderr


@pytest.mark.slow
def test_the_script_with_real_processes(tmp_path):
    """The whole, with a cold start by fine-tuning, by real processes: some two minutes."""
    program = tmp_path / "bin" / "flowopd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flowopd_cli "$@"\n')
    program.chmod(0o755)
    given = {**os.environ, **SETTINGS, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    given |= {"START": "coldstart", "START_SET": f"{SETTINGS['TEACHER_SET']} sft.samples=8 sft.batch=4"}
    done = subprocess.run(["bash", SCRIPT], env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/push-preview\n"
