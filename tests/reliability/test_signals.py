"""SIGINT and SIGTERM: the iteration is finished and saved, and the resume command is printed."""

import signal
import time

import pytest
from support import commands, toyruns
from support.forks import Kill

from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
SLEEPS = """
import time
from flowopd_cli.runs.run import RunDir
log = RunDir.log
def slowly(run, row):
    log(run, row)
    if row["iteration"] == 3:
        time.sleep(60)
RunDir.log = slowly
"""


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_a_signal_finishes_the_iteration_and_prints_the_resume_command(forks, whole, tmp_path, stage, number, code):
    path = tmp_path / "a run"
    ended = forks.run(*whole.commands[stage], "--out", path, kill=Kill(rows=1, number=number), below=path)
    assert ended.code == code, ended.err
    run = RunDir.open(path)
    logged = len(run.rows())
    assert f"stopped after iteration {logged} of 5; resume with: flowopd {stage} --resume '{path}'" in ended.err
    assert run.manifest().status == "interrupted"
    assert run.checkpoints.newest()[0] == logged
    assert forks.run(stage, "--resume", path).code == 0
    toyruns.check_same_end(path, whole.paths[stage])


def test_the_end_of_the_terminal_finishes_the_iteration(forks, whole, tmp_path):
    path, default = tmp_path / "r", "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    kill = Kill(rows=1, number=signal.SIGHUP)
    ended = forks.run(*whole.commands["teacher"], "--out", path, kill=kill, below=path, before=default)
    assert ended.code == 129, ended.err
    run = RunDir.open(path)
    assert run.manifest().status == "interrupted"
    assert run.checkpoints.newest()[0] == len(run.rows())


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_second_signal_stops_at_once(forks, whole, tmp_path, number, code):
    path = tmp_path / "r"
    kill = Kill(rows=3, number=number, times=2, gap=0.5)
    ended = forks.run(*whole.commands["teacher"], "--out", path, kill=kill, below=path, before=SLEEPS)
    assert ended.code == code, ended.err
    assert ended.seconds < 30
    assert "Traceback" not in ended.err
    assert f"stopped; resume with: flowopd teacher --resume {path}" in ended.err
    assert RunDir(path).manifest().status == "interrupted"
    assert RunDir(path).checkpoints.newest()[0] == 2
    assert forks.run("teacher", "--resume", path).code == 0
    toyruns.check_same_end(path, whole.paths["teacher"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_iteration(forks, whole, tmp_path, number):
    path = tmp_path / "r"
    early = f"""
import os
from flowopd_cli.stages import teacher
load = teacher.load_model
def stopped(*args):
    os.kill(os.getpid(), {int(number)})
    return load(*args)
teacher.load_model = stopped
"""
    ended = forks.run(*whole.commands["teacher"], "--out", path, before=early)
    assert ended.code == 128 + number
    assert f"stopped; resume with: flowopd teacher --resume {path}" in ended.err
    assert status_now(path) == "interrupted"
    assert forks.run("teacher", "--resume", path).code == 0
    toyruns.check_same_end(path, whole.paths["teacher"])


@pytest.mark.parametrize(("number", "code"), [CODES[1], pytest.param(*CODES[0], marks=pytest.mark.slow)])
def test_the_launcher_forwards_a_signal_to_two_processes(whole, tmp_path, number, code):
    path = tmp_path / "r"
    more = [*toyruns.changes("train.iterations=100000"), "--processes", 2, "--out", path]
    process = commands.started(*whole.commands["distill"], *more)
    commands.wait_for_rows(path, process, 1)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == code, said
    run = RunDir.open(path)
    assert f"stopped after iteration {len(run.rows())} of 100000; resume with: flowopd distill --resume {path}" in said
    assert run.checkpoints.newest()[0] == len(run.rows())
    assert run.manifest().status == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), CODES)
def test_two_processes_stop_at_once_at_the_second_signal(whole, tmp_path, number, code):
    """One iteration would take minutes."""
    path = tmp_path / "r"
    long = toyruns.changes("train.groups=64", "train.group_size=512", "train.rollout_batch=64", "train.iterations=9")
    process = commands.started(*whole.commands["teacher"], *long, "--processes", 2, "--out", path)
    while not (path / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(15)  # imports, the base, and then the first rollout
    copies = commands.descendants(process.pid)
    assert len(copies) >= 3  # the launcher and two copies
    process.send_signal(number)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(number)
    output = process.communicate(timeout=40)[1]
    assert process.returncode == code, output
    assert status_now(path) == "interrupted"
    assert not [pid for pid in copies if commands.alive(pid)]


@pytest.mark.parametrize("count", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_aborts_no_process(tmp_path, count):
    """The interpreter's end, at which threads of rewards could abort the process, is a matter of chance."""
    large = toyruns.changes("train.iterations=100", "train.groups=8", "train.group_size=12", "train.rollout_batch=8")
    gaps = [0.1 + 0.8 * number / count for number in range(count)]
    codes = [_stopped_twice(tmp_path / str(number), large, gap) for number, gap in enumerate(gaps)]
    assert codes == [130] * count


def _stopped_twice(path, settings, gap):
    """The exit code of a training that is stopped by Ctrl-C twice, ``gap`` seconds apart."""
    process = commands.started("teacher", "--reward", "ocr", *settings, "--out", path)
    commands.wait_for_rows(path, process, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(gap)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert status_now(path) == "interrupted"
    return process.returncode
