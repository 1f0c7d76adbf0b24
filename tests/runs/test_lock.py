"""The lock of a run: one living owner; a dead one is replaced."""

import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs import lock as locks
from flowopd_cli.runs.lock import Lock


@pytest.fixture
def lock(tmp_path):
    return Lock(tmp_path / ".lock")


def write_note(lock, age=0.0, **owner):
    """The note of another owner, last touched ``age`` seconds ago."""
    lock.path.write_text(json.dumps({"pid": 2**22 + 1, **locks._machine(), **owner}), encoding="utf-8")
    os.utime(lock.path, (time.time() - age,) * 2)
    lock.path.with_name(".lock.flock").touch()


def hold(path, ready):
    Lock(path).acquire()
    ready.set()
    time.sleep(60)


@pytest.fixture
def owner(lock):
    """A living process that holds the lock."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(lock.path, ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_living_owner_is_respected_until_it_is_killed(lock, owner):
    with pytest.raises(ArtifactError, match=f"process {owner.pid} on .* is writing this run"):
        lock.acquire()
    assert lock.taken()
    owner.kill()
    owner.join()
    assert lock.path.exists()
    assert not lock.taken()
    lock.acquire()
    assert lock.held


def test_a_reused_process_number_is_not_its_old_owner(lock):
    write_note(lock, pid=os.getpid())
    assert not Lock(lock.path).taken()
    lock.acquire()
    assert lock.held


def rivals(path, count=8):
    """The number of several threads that start together and take a lock."""
    start = threading.Barrier(count)

    def take(lock):
        start.wait()
        with suppress(ArtifactError):
            lock.acquire()

    locks = [Lock(path) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(take, locks))
    return sum(lock.held for lock in locks)


@pytest.mark.parametrize("stale", [False, True])
def test_of_rivals_one_takes_the_lock(tmp_path, monkeypatch, stale):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    for attempt in range(10):
        path = tmp_path / str(attempt) / ".lock"
        path.parent.mkdir()
        if stale:
            write_note(Lock(path))
        assert rivals(path) == 1
        assert sorted(file.name for file in path.parent.iterdir()) == [".lock", ".lock.flock"]


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"machine": "another boot"}, {"host": "elsewhere", "pid": 1}])
def test_an_owner_elsewhere_counts_as_gone_after_a_silence(lock, other):
    """On another machine, or from before a reboot."""
    write_note(lock, locks.SILENCE - 60, **other)
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
    write_note(lock, host="elsewhere")
    with pytest.raises(ArtifactError, match="has taken this run over"):
        lock.confirm()
    lock.release()
    assert json.loads(lock.path.read_text())["pid"] == 2**22 + 1


def test_a_deleted_note_is_written_again(lock):
    lock.confirm()
    assert not lock.path.exists(), "without a lock nothing is confirmed"
    lock.acquire()
    lock.path.unlink()
    lock.confirm()
    with pytest.raises(ArtifactError, match="is writing this run"):
        Lock(lock.path).acquire()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x"}', '{"pid": null, "host": 1}', "[" * 10000])
def test_a_note_without_a_process_is_ignored(lock, content):
    lock.path.write_text(content)
    assert not lock.taken()
    lock.acquire()
    assert lock.held


def test_reading_a_lock_writes_nothing(lock):
    assert not lock.taken()
    write_note(lock)
    lock.path.with_name(".lock.flock").unlink()
    assert lock.taken()
    assert [file.name for file in lock.path.parent.iterdir()] == [".lock"]
