"""The lock of a run: one owner, and one that is gone is told from one that lives."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs import lock as locks
from flowopd_cli.runs.lock import Lock

HERE = {"host": socket.gethostname(), "machine": locks._machine()}


@pytest.fixture
def lock(tmp_path):
    return Lock(tmp_path / ".lock")


def left(lock, age=0.0, **owner):
    """A lock of somebody else, last touched ``age`` seconds ago."""
    lock.path.write_text(json.dumps({"pid": 2**22 + 1, "birth": "1", **HERE, **owner}), encoding="utf-8")
    os.utime(lock.path, (time.time() - age,) * 2)


def sleeper():
    """A process that does nothing."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def owned_by(lock, pid):
    left(lock, pid=pid, birth=locks._birth(pid))


def test_a_reused_process_number_is_not_its_old_owner(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": os.getpid(), "birth": "1", "host": socket.gethostname()}), encoding="utf-8")
    lock = Lock(path)
    lock.acquire()
    assert lock.held


def rivals(path, count=8):
    """How many of several threads that start together take a lock."""
    start, held = threading.Barrier(count), []

    def take():
        lock = Lock(path)
        start.wait()
        with suppress(ArtifactError):
            lock.acquire()
            held.append(lock)

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(held)


@pytest.mark.parametrize("left_behind", [None, {"pid": 2**22 + 1, "birth": "0", "host": socket.gethostname()}])
def test_of_rivals_one_takes_the_lock(tmp_path, left_behind):
    for attempt in range(30):
        path = tmp_path / str(attempt) / ".lock"
        path.parent.mkdir()
        if left_behind:
            path.write_text(json.dumps(left_behind), encoding="utf-8")
        assert rivals(path) == 1
        assert [file.name for file in path.parent.iterdir()] == [".lock"]


def test_a_lock_needs_no_hard_links(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    first.acquire()
    with pytest.raises(ArtifactError, match="is writing this run"):
        second.acquire()
    first.release()
    second.acquire()


def test_a_lock_of_another_machine_is_respected(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": 1, "birth": None, "host": "elsewhere"}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"on elsewhere .* delete"):
        Lock(path).acquire()


def test_a_living_owner_is_respected_until_it_is_killed(lock):
    owner = sleeper()
    try:
        owned_by(lock, owner.pid)
        with pytest.raises(ArtifactError, match=f"process {owner.pid} on .* is writing this run"):
            lock.acquire()
        assert lock.taken()
        owner.send_signal(signal.SIGKILL)
        while locks._told(owner.pid, 0) != "Z":
            time.sleep(0.01)
        assert not lock.taken()  # nobody has waited for it yet
        lock.acquire()
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"machine": "another boot pid:[1]"}])
def test_an_owner_that_cannot_be_looked_at_counts_as_gone_after_a_silence(lock, other):
    """Of another machine, of a container with numbers of its own, or from before a reboot; its number says nothing."""
    left(lock, locks.SILENCE - 60, pid=os.getpid(), birth=locks._birth(os.getpid()), **other)
    with pytest.raises(ArtifactError, match=r"last sign of life 54\d s ago.* delete"):
        lock.acquire()
    assert lock.taken()
    os.utime(lock.path, (time.time() - locks.SILENCE - 1,) * 2)
    assert not lock.taken()
    lock.acquire()
    assert lock.held


def test_an_owner_gives_signs_of_life(lock, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    lock.acquire()
    os.utime(lock.path, (0, 0))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
    assert not lock.path.exists()


def test_an_owner_that_was_taken_over_writes_and_releases_nothing(lock):
    lock.acquire()
    left(lock)
    with pytest.raises(ArtifactError, match="has taken this run over"):
        lock.confirm()
    lock.release()
    assert json.loads(lock.path.read_text())["pid"] == 2**22 + 1


def test_a_lock_that_somebody_deleted_is_taken_again(lock):
    lock.acquire()
    lock.path.unlink()
    lock.confirm()
    with pytest.raises(ArtifactError, match="is writing this run"):
        Lock(lock.path).acquire()


def test_who_holds_nothing_has_nothing_to_confirm(lock):
    lock.confirm()
    assert not lock.path.exists()


def test_an_empty_lock_is_being_written_for_a_moment(lock):
    lock.path.touch()
    with pytest.raises(ArtifactError, match="another process is taking this run"):
        lock.acquire()
    os.utime(lock.path, (time.time() - locks.UNWRITTEN - 1,) * 2)
    lock.acquire()
    assert lock.held


def test_drafts_of_processes_that_were_killed_go(lock):
    old, new = (lock.path.with_name(f".lock.{name}.draft") for name in ("a", "b"))
    old.touch()
    os.utime(old, (0, 0))
    new.touch()
    lock.acquire()
    assert not old.exists()
    assert new.exists()
