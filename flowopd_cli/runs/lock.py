"""A lock that knows when its owner is gone, so that two processes never write one run. No torch here."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.files import storing

BEAT = 30.0  # seconds between two signs of life
SILENCE = 600.0  # seconds without one after which an owner that cannot be looked at counts as gone
UNWRITTEN = 10.0  # seconds that a lock may be empty before its owner counts as gone
_DRAFT = ".draft"


class Lock:
    """A file that names its owner. A dead owner's lock is taken over; see docs/reliability.md.

    On this machine the system says whether the owner lives. Of one on another machine, or in another container, the
    lock's age tells: as long as an owner lives it touches its lock every ``BEAT`` seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False
        self._content = b""
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ArtifactError: a living process holds it.
            StorageError: it cannot be written.
        """
        if self.held:
            return
        self._content = json.dumps(_myself()).encode()
        draft = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}{_DRAFT}")
        try:
            with storing(draft):
                draft.write_bytes(self._content)
            self.held = _take(draft, self.path) or self._take_over(draft)
        finally:
            draft.unlink(missing_ok=True)
        if not self.held:
            raise ArtifactError(f"{self.path.parent}: another process is taking this run; choose another --out")
        self._remove_old_drafts()
        self._released.clear()
        threading.Thread(target=self._beat, args=(self._released,), daemon=True, name="lock").start()

    def confirm(self) -> None:
        """Before something is written: whether a lock that was taken here is still held; a deleted one is taken again.

        Raises:
            ArtifactError: another process took it over.
        """
        if not self.held:
            return
        with suppress(FileExistsError):
            _create(self.path, self._content)
        if not self._is_mine():
            raise ArtifactError(
                f"{self.path.parent}: another process has taken this run over, for this one gave no sign of life; "
                "nothing more is written here"
            )

    def release(self) -> None:
        """Give the lock back, if it is held here."""
        if self.held:
            self._released.set()
            if self._is_mine():
                self.path.unlink(missing_ok=True)
            self.held = False

    def taken(self) -> bool:
        """Whether a living process holds it, this one or another."""
        try:
            self._refuse_living_owner(time.time())
        except FileNotFoundError:
            return False
        except ArtifactError:
            return True
        return False

    def _is_mine(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except OSError:
            return False

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(BEAT):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)

    def _remove_old_drafts(self) -> None:
        """Those of processes that were killed while they took the lock."""
        for draft in list(self.path.parent.glob(f"{self.path.name}.*{_DRAFT}")):
            with suppress(OSError):
                if self.path.stat().st_mtime - draft.stat().st_mtime > UNWRITTEN:
                    draft.unlink()

    def _take_over(self, draft: Path) -> bool:
        """Replace a dead owner's lock; false when another process was quicker.

        Raises:
            ArtifactError: the owner is alive, or may be.
        """
        with _one_at_a_time(self.path.parent):
            with suppress(FileNotFoundError):
                self._refuse_living_owner(draft.stat().st_mtime)  # by the clock of the file system
                self.path.unlink()
            return _take(draft, self.path)

    def _refuse_living_owner(self, now: float) -> None:
        content, silence = self.path.read_bytes(), now - self.path.stat().st_mtime
        try:
            owner = json.loads(content)
            pid, birth, host, machine = int(owner["pid"]), owner["birth"], owner["host"], owner.get("machine")
        except (ValueError, KeyError, TypeError, AttributeError):
            if not content and silence < UNWRITTEN:
                raise ArtifactError(f"{self.path.parent}: another process is taking this run") from None
            return
        if host != socket.gethostname() or machine not in (None, _machine()):
            if silence < SILENCE:
                raise ArtifactError(
                    f"{self.path.parent}: process {pid} on {host} is writing this run (last sign of life "
                    f"{max(silence, 0):.0f} s ago; after {SILENCE:.0f} s without one it counts as gone); wait for it, "
                    f"choose another --out, or, if you know that it is gone, delete {self.path}"
                )
        elif _alive(pid) and (birth is None or birth == _birth(pid)):
            raise ArtifactError(
                f"{self.path.parent}: process {pid} on {host} is writing this run; wait for it, or choose another --out"
            )


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "birth": _birth(pid), "host": socket.gethostname(), "machine": _machine()}


def _take(draft: Path, path: Path) -> bool:
    """Give the finished file ``draft`` the name ``path`` as well; false where that name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        with suppress(FileExistsError):
            _create(path, draft.read_bytes())
            return True
        return False
    return True


def _create(path: Path, content: bytes) -> None:
    with path.open("xb") as handle:
        handle.write(content)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the system's lock on a folder, which ends with the process, where the system has one."""
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _alive(pid: int) -> bool:
    if pid <= 0:  # to the system a group of processes, or all
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _told(pid, 0) not in {"Z", "X"}  # ended, and nobody has asked how


def _birth(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, where the system tells; tells a reused pid from its owner."""
    return _told(pid, 19)


def _told(pid: int, index: int) -> str | None:
    """What Linux says of a process, from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[index]
    except (OSError, IndexError):
        return None


def _machine() -> str | None:
    """What tells a boot of a machine, and a container with process numbers of its own, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
