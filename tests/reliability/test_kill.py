"""A training killed at any moment is resumed to the end of an undisturbed one, bit for bit."""

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from support import commands, toyruns
from support.forks import Kill

from flowopd_cli.runs.manifest import is_run, status_now
from flowopd_cli.runs.run import RunDir

FEW, MANY = 2, 25
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


@pytest.mark.parametrize("stage", ["teacher", "nft", "distill", "coldstart"])
@pytest.mark.parametrize("count", [FEW, SLOW])
def test_a_killed_training_ends_like_an_undisturbed_one(forks, whole, tmp_path, stage, count):
    places, hits = Counter(), 0
    for number, planned in enumerate(kills(whole, stage, count)):
        path = tmp_path / str(number)
        ended = disturbed(forks, whole.commands[stage], path, planned)
        if not any(end.killed for end in ended):  # it was done before its time came
            toyruns.check_same_end(path, whole.paths[stage])
            path, planned = tmp_path / f"{number}-again", [Kill(change=len(whole.made[stage].changes) - number)]
            ended = disturbed(forks, whole.commands[stage], path, planned)
        toyruns.check_same_end(path, whole.paths[stage])
        for kill, end in zip(planned, ended, strict=False):
            if kill is not None and end.killed:
                hits += 1
                last = f"at {end.changes[-1][0]}" if kill.seconds is None and not kill.half and end.changes else ""
                places[last or (f"in the middle of {kill.half}" if kill.half else "at any time")] += 1
    print(json.dumps({"stage": stage, "trials": count, "kills": hits, "where": places}))
    assert hits >= count


IDLE = """
import sys, types
sys.modules["flowopd_cli.stages.teacher"] = types.SimpleNamespace(run=lambda *args, **named: {"metrics": {"x": 1}})
"""


def test_a_kill_at_any_write_leaves_a_usable_directory(forks, tmp_path):
    """The first writes and the last ones, one by one: lock, manifest, recipe."""
    command, whole = toyruns.teacher("quality"), tmp_path / "whole"
    changes = forks.run(*command, "--out", whole, below=whole, before=IDLE).changes
    assert len(changes) > 20
    for number in range(1, len(changes) + 1):
        path = tmp_path / str(number)
        assert forks.run(*command, "--out", path, below=path, before=IDLE, kill=Kill(change=number)).killed
        ended = forks.run(*toyruns.going_on(command, path), before=IDLE)
        assert ended.code == 0, (changes[number - 1], ended.err)
        assert status_now(path) == "done"
        assert toyruns.listing(path) == toyruns.listing(whole), changes[number - 1]


@pytest.mark.slow
def test_a_killed_full_training_ends_like_an_undisturbed_one(forks, tmp_path):
    settings = ("adapter.kind=full", "train.lr=0.0001", "algorithm=nft", "sampling.kernel=ode", "nft.slow_rate=0.05")
    command, draw = toyruns.teacher("quality", *settings), random.Random("full")
    made = forks.run(*command, "--out", tmp_path / "whole", below=tmp_path / "whole")
    assert made.code == 0, made.err
    for number in range(4):
        path = tmp_path / str(number)
        (killed, *_) = disturbed(forks, command, path, [Kill(change=draw.randint(5, len(made.changes)))])
        assert killed.killed
        toyruns.check_same_end(path, tmp_path / "whole")


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_reward_with_global_random_state_is_resumed_exactly(forks, whole, tmp_path, rows):
    command, paths = toyruns.teacher("support.noisy:score"), [tmp_path / name for name in ("whole", "killed")]
    command += toyruns.changes("prompts=[{source: 'toy:all'}]")
    for path, planned in zip(paths, ([], [Kill(rows=rows)]), strict=True):
        ended = disturbed(forks, command, path, planned)
        assert len(ended) == 1 + len(planned)
    toyruns.check_same_end(paths[1], paths[0])
    assert len({row["reward"] for row in RunDir(paths[0]).rows()}) == 5


@pytest.mark.parametrize(
    ("stage", "count"),
    [("distill", 1), *(pytest.param(stage, 5, marks=pytest.mark.slow) for stage in ("teacher", "distill"))],
)
def test_two_processes_of_which_one_is_killed_end_alike(forks, whole, tmp_path, stage, count):
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
def test_the_whole_process_tree_is_killed(whole, tmp_path, processes):
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


REPORTS = "import os; os.environ['FLOWOPD_REPORT'] = '1'"


@pytest.mark.parametrize(
    "after", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(-1, marks=pytest.mark.slow)]
)
def test_a_training_killed_while_it_writes_its_report(forks, whole, tmp_path, after):
    """It is written before the run says that it is done, so that a run that is done has one."""
    undisturbed = tmp_path / "undisturbed"
    ended = forks.run(*whole.commands["teacher"], "--out", undisturbed, below=undisturbed, before=REPORTS)
    assert ended.code == 0, ended.err
    report = RunDir(undisturbed).report_file.name
    over = [number for number, (_, path) in enumerate(ended.changes, start=1) if report in path]
    assert len(over) >= 3
    path, kill = tmp_path / "killed", Kill(change=over[-1] + after)
    assert forks.run(*whole.commands["teacher"], "--out", path, below=path, before=REPORTS, kill=kill).killed
    assert status_now(path) == "interrupted"
    again = forks.run(*toyruns.going_on(whole.commands["teacher"], path), before=REPORTS)
    assert again.code == 0, again.err
    assert "<dt>status</dt><dd>done</dd>" in RunDir(path).report_file.read_text()
    toyruns.check_same_end(path, undisturbed)
