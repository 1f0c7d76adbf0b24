"""Copies of a command under the elastic launcher: their exit code, and requests to stop."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flowopd_cli.cli import launch
from flowopd_cli.errors import RecipeError

RELAUNCH = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from flowopd_cli.cli import launch
from flowopd_cli.errors import Interrupted
launch.PROGRAM, launch.KILL_SECONDS = ("-c", {program!r}), 1.0
try:
    sys.exit(launch.relaunch(["teacher"], 2, "cpu"))
except Interrupted as error:
    sys.exit(f"{{error}} {{error.exit_code}}")
"""
STOPS_POLITELY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143 if {rank} == 0 else 0))
print("ready\\n", end="", flush=True)  # one write, also without a buffer
time.sleep(60)
""".format(rank="int(__import__('os').environ['RANK'])")


def relaunched(program):
    command = [sys.executable, "-c", RELAUNCH.format(program=program)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


@pytest.mark.parametrize(("rank", "code"), [(0, 4), (1, 3), (0, -9)])
def test_the_exit_code_is_that_of_the_copy_that_failed_and_the_other_ends(forks, rank, code):
    end = f"os._exit({code})" if code > 0 else f"os.kill(os.getpid(), {-code})"
    program = f"import os, time\nif os.environ['RANK'] == '{rank}': {end}\ntime.sleep(60)"
    ended = forks.run(before=RELAUNCH.format(program=program))
    assert ended.code == (code if code > 0 else 137)
    assert (ended.out, ended.err) == ("", "")
    assert ended.seconds < 50


def test_copies_that_succeed_print_through_the_launcher(forks):
    program = "import os, sys; print(f'{sys.argv[1:]} {os.environ[\"WORLD_SIZE\"]}\\n', end='')"
    ended = forks.run(before=RELAUNCH.format(program=program))
    assert (ended.code, ended.out, ended.err) == (0, "['teacher'] 2\n" * 2, "")


# SIGTERM comes to a launcher in the next test.
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGHUP, 129)],
)
def test_a_request_to_stop_reaches_the_copies_and_sets_the_exit_code(number, code):
    process = relaunched(STOPS_POLITELY)
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(number)
    process.communicate(timeout=50)
    assert process.returncode == code


def test_copies_that_do_not_stop_after_a_second_request_are_killed():
    ignore = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    process = relaunched(f"{ignore}print('1\\n', end='', flush=True)\ntime.sleep(60)")
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=50)[1] == "stopped 143\n"


LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "local", "remarks"),
    [
        (LAUNCHED, "1", 0),
        (STEP | {name: value for name, value in LAUNCHED.items() if name != "LOCAL_RANK"}, "0", 0),
        ({**STEP, "RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, None, 1),
        ({**LAUNCHED, "MASTER_PORT": ""}, None, 1),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}, None, 0),
        (STEP, None, 0),
    ],
)
def test_numbers_count_when_a_launcher_gave_them_all(environment, local, remarks):
    adopted = dict(environment)
    assert len(launch.adopt(adopted)) == remarks
    assert adopted.get("LOCAL_RANK") == local
    assert ("RANK" in adopted) == (local is not None)


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"WORLD_SIZE": "-1"}, {"LOCAL_RANK": "x"}, {"RANK": "1.0"}])
def test_numbers_of_no_process_are_refused(wrong):
    adopted = {**LAUNCHED, **wrong}
    with pytest.raises(RecipeError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        launch.adopt(adopted)
    assert not {*launch.NUMBERS} & {*adopted}


@pytest.mark.parametrize(("rank", "shared", "code"), [(0, True, 2), (1, True, 0), (1, False, 2)])
def test_the_first_copy_reports_a_shared_error(monkeypatch, rank, shared, code):
    for name, value in {"TORCHELASTIC_RUN_ID": launch.RUN_ID, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    assert launch.exit_code(2, shared=shared) == code
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another launcher")
    assert launch.exit_code(2, shared=shared) == 2
