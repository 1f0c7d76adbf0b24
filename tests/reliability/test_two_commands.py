"""Of several commands on one run directory exactly one proceeds."""

import shutil

import pytest
from support import commands, toyruns
from support.forks import Kill

from flowopd_cli.runs.run import RunDir

SLOW = """
import time
from flowopd_cli.runs.run import RunDir
log = RunDir.log
RunDir.log = lambda run, row: (time.sleep(0.5), log(run, row))
"""  # a training that lasts until every rival has begun


@pytest.fixture(scope="module")
def half(forks, whole, tmp_path_factory):
    """A run that was killed in the middle."""
    path = tmp_path_factory.mktemp("half") / "r"
    assert forks.run(*whole.commands["teacher"], "--out", path, kill=Kill(rows=3), below=path).killed
    return path


def one_proceeded(ended, path):
    """One trained; the others were refused with one line, or came late and found the run finished."""
    done, refused = ([end for end in ended if (end.code == 0) == well] for well in (True, False))
    done = [end for end in done if "teacher toy-" in end.err]  # its progress
    assert len(done) == 1, [(end.code, end.err) for end in ended]
    assert done[0].out == f"{path}\n"
    for end in refused:
        assert end.code == 2, end.err
        assert end.err.count("flowopd: error: ") == 1
        assert any(words in end.err for words in ("is writing this run", "is taking this run", "is not empty"))
        assert "Traceback" not in end.err


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("mode", ["fresh", "resume", "force"])
def test_one_of_several_commands_proceeds(forks, whole, half, tmp_path, mode, count):
    path = tmp_path / "r" if mode == "fresh" else shutil.copytree(half, tmp_path / "r")
    fresh = [*whole.commands["teacher"], "--out", path]
    argv = {"fresh": fresh, "resume": ["teacher", "--resume", path], "force": [*fresh, "--force"]}[mode]
    one_proceeded(forks.rivals(*argv, count=count, before=SLOW), path)
    toyruns.check_same_end(path, whole.paths["teacher"])


@pytest.mark.parametrize("more", [["--force"], [], None])
def test_a_running_run_is_left_alone(forks, whole, half, tmp_path, more):
    """A second command comes while the first has long begun."""
    path = shutil.copytree(half, tmp_path / "r")
    owner = RunDir.open(path)
    owner.start(owner.recipe())
    before = toyruns.listing(path)
    argv = ["teacher", "--resume", path] if more is None else [*whole.commands["teacher"], "--out", path, *more]
    ended = forks.run(*argv)
    assert ended.code == 2
    assert "is writing this run; wait for it" in ended.err
    assert toyruns.listing(path) == before
    assert owner.manifest().status == "running"
    owner.finish("interrupted")


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_are_refused(forks, whole, half, tmp_path, resume):
    """The first one refuses, and the other does not wait for it."""
    path = shutil.copytree(half, tmp_path / "r")
    owner = RunDir.open(path)
    if resume:
        owner.start(owner.recipe())
    argv = ["teacher", "--resume", path] if resume else [*whole.commands["teacher"], "--out", path]
    ended = forks.run(*argv, ranks=2)
    assert ended.code == 2, ended.err
    assert ("is writing this run" if resume else "is not empty") in ended.err
    assert "Traceback" not in ended.err
    assert ended.seconds < 60
    owner.finish("interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_one_of_two_real_processes_proceeds(whole, half, tmp_path, resume):
    path = shutil.copytree(half, tmp_path / "r") if resume else tmp_path / "r"
    argv = ["teacher", "--resume", path] if resume else [*whole.commands["teacher"], "--out", path]
    rivals = [commands.started(*argv), commands.started(*argv)]
    said = [rival.communicate(timeout=300) for rival in rivals]
    assert sorted(rival.returncode for rival in rivals) == [0, 2], said
    toyruns.check_same_end(path, whole.paths["teacher"])
