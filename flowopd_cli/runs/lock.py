"""The lock of a run directory: ``filelock`` for the processes of one machine, a note of the owner for all others."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.files import atomic_write, storing

BEAT = 30.0  # seconds between two signs of life of an owner
SILENCE = 600.0  # seconds without one after which an owner on another machine counts as gone
PATIENCE = 1.0  # seconds to wait for a process that only looks whether the lock is taken


class Lock:
    """A lock with one owner at a time; a dead owner's lock is taken over. See docs/reliability.md.

    ``path`` is a note that names the owner. On one machine the system's lock on the file beside it ends with the owner.
    Other machines may not see that lock, so an owner touches its note every ``BEAT`` seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.held, self._note = path, False, ""
        self._flock = FileLock(f"{path}.flock", thread_local=False)
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock; :class:`ArtifactError` if a living process holds it."""
        if self.held:
            return
        with storing(self.path):
            try:
                self._flock.acquire(timeout=PATIENCE, poll_interval=0.02)
            except Timeout:
                raise ArtifactError(f"{self.path.parent}: {_description(self._owner()[0])}") from None
        try:
            owner, silence = self._owner()
            if owner is not None and not _is_local(owner) and silence < SILENCE:
                raise ArtifactError(
                    f"{self.path.parent}: {_description(owner)} (last sign of life {max(silence, 0):.0f} s ago; after "
                    f"{SILENCE:.0f} s without one it counts as gone). If you know that it is gone, delete {self.path}"
                )
            self._note = json.dumps({"pid": os.getpid(), **_machine()})
            atomic_write(self.path, self._note, lasting=False)
        except BaseException:
            self._flock.release()
            raise
        self.held = True
        self._released.clear()
        threading.Thread(target=self._beat, args=(self._released,), daemon=True, name="lock").start()

    def confirm(self) -> None:
        """Check that a lock taken here is still held; :class:`ArtifactError` if another machine has taken over."""
        if self.held and not self.path.exists():
            atomic_write(self.path, self._note, lasting=False)
        if self.held and not self._is_mine():
            raise ArtifactError(
                f"{self.path.parent}: another process has taken this run over, because this one gave no sign of life; "
                "nothing more is written here"
            )

    def release(self) -> None:
        """Give the lock back, if it is held here."""
        if self.held:
            self._released.set()
            if self._is_mine():
                self.path.unlink(missing_ok=True)
            self._flock.release()
            self.held = False

    def taken(self) -> bool:
        """Whether a living process holds it, this one or another."""
        owner, silence = self._owner()
        if owner is None:
            return False
        if not _is_local(owner) or not Path(self._flock.lock_file).exists():
            return silence < SILENCE
        try:
            with self._flock.acquire(timeout=0):
                return self.held
        except Timeout:
            return True
        except OSError:  # a directory that may only be read
            return silence < SILENCE

    def _owner(self) -> tuple[dict[str, Any] | None, float]:
        """The owner by the note, ``None`` without a sound one, and the seconds since its last sign of life."""
        try:
            owner, silence = json.loads(self.path.read_bytes()), time.time() - self.path.stat().st_mtime
            return {"pid": int(owner["pid"]), "host": str(owner["host"]), **owner}, silence
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None, 0.0

    def _is_mine(self) -> bool:
        with suppress(OSError, ValueError):
            return self.path.read_text(encoding="utf-8") == self._note
        return False

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(BEAT):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)


def _description(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process is taking this run"
    return f"process {owner['pid']} on {owner['host']} is writing this run; wait for it, or choose another --out"


def _machine() -> dict[str, str | None]:
    """This machine since its last start."""
    boot = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "machine": boot}


def _is_local(owner: dict[str, Any]) -> bool:
    """Whether the owner runs where this process sees the system's lock."""
    return all(owner.get(key) == value for key, value in _machine().items())
