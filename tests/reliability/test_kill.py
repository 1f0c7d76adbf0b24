"""Trainings that are killed at any moment go on to the end of an undisturbed one, bit by bit."""

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import commands
import pytest
import toyruns
from forks import Kill

from flowopd_cli.manifest import is_run, status_now

FEW, MANY = 3, 25
SLOW = pytest.param(MANY, marks=pytest.mark.slow)


def kills(whole, stage, count):
    """When the first process of each trial is killed, and when the one that goes on, if it is.

    By turns at a change of a file, in the middle of a write, and at any time.
    """
    made, draw = whole.made[stage], random.Random(f"{stage}/{count}")
    usual = whole.made["distill"].seconds  # by then nothing is read for the first time
    writes = {"append": 5, "bytes": 3}  # rows of metrics, and checkpoints

    def one(index):
        if index % 2 == 0:
            return Kill(change=draw.randint(1, len(made.changes)))
        half = draw.choice(["append", "bytes", None, None])
        if half:
            return Kill(half=half, change=draw.randint(1, writes[half]))
        return Kill(seconds=draw.uniform(0.02, usual))

    return [(one(index), one(index + 1) if draw.random() < 0.3 else None) for index in range(count)]


def disturbed(forks, command, path, planned, ranks=1):
    """Run a command through kills to its end; how each process before the last one ended."""
    ended, lived = [], [kill for kill in planned if kill is not None]
    while not (is_run(path) and status_now(path) == "done"):
        assert len(ended) < 6, ended[-1].err
        kill = lived.pop(0) if lived else None
        ended.append(forks.run(*toyruns.going_on(command, path), kill=kill, below=path, ranks=ranks))
        if kill is None:
            assert ended[-1].code == 0, ended[-1].err
    return ended


@pytest.mark.parametrize("stage", ["teacher", "distill", "coldstart"])
@pytest.mark.parametrize("count", [FEW, SLOW])
def test_a_killed_training_comes_to_the_end_of_an_undisturbed_one(forks, whole, tmp_path, stage, count):
    told, hit = Counter(), 0
    for number, planned in enumerate(kills(whole, stage, count)):
        path = tmp_path / str(number)
        ended = disturbed(forks, whole.commands[stage], path, planned)
        toyruns.check_same_end(path, whole.paths[stage])
        for kill, end in zip(planned, ended, strict=False):
            if kill is not None and end.killed:
                hit += 1
                last = f"at {end.changes[-1][0]}" if kill.seconds is None and not kill.half and end.changes else ""
                told[last or (f"in the middle of {kill.half}" if kill.half else "at any time")] += 1
    print(json.dumps({"stage": stage, "trials": count, "kills": hit, "where": told}))
    assert hit >= 0.8 * count


@pytest.mark.parametrize("stage", ["teacher", "distill"])
@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_two_processes_of_which_one_is_killed_come_to_the_same_end(forks, whole, tmp_path, stage, count):
    draw, reference = random.Random(f"two/{stage}/{count}"), whole.in_two(stage)
    for number in range(count):
        first = Kill(change=draw.randint(20, len(whole.made[stage].changes)))
        second = Kill(rows=draw.randint(1, 3), rank=1)
        path, planned = tmp_path / str(number), [second if number % 2 else first]
        ended = disturbed(forks, whole.commands[stage], path, planned, ranks=2)
        assert ended[0].code != 0
        toyruns.check_same_end(path, reference)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_real_command_line_is_killed_with_all_that_it_started(whole, tmp_path, processes):
    path = tmp_path / "r"
    command = (
        [*whole.commands["distill"], "--processes", str(processes)] if processes > 1 else whole.commands["distill"]
    )
    process = commands.started(*command, "--out", path)
    commands.wait_for_rows(path, process, 3)
    for pid in commands.descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert status_now(path) == "interrupted"
    again = commands.started("distill", "--resume", path)
    said = again.communicate(timeout=300)
    assert again.returncode == 0, said[1]
    assert said[0] == f"{path}\n"
    reference = whole.paths["distill"] if processes == 1 else whole.in_two("distill")
    if processes == 1:
        toyruns.check_same_end(path, reference)
    else:
        assert toyruns.figures(path) == toyruns.figures(reference)
