"""Files that survive a crash: atomic writes, checksummed folders, and a lock that knows when its owner is gone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json
from flowopd_cli.paths import below

CHECKSUMS = "checksums.json"
_STAGING = ".staging-"


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content``: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    running = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            running.update(block)
    return running.hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of several files, whatever their order."""
    lines = sorted(f"{path.name} {sha256_file(path)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON a row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def plain(value: Any) -> Any:
    """JSON values only: a tensor of one element is its number, a figure that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    return number if math.isfinite(number) else None


def commit_folder(final: Path, writer: Callable[[Path], None]) -> None:
    """Let ``writer`` fill a staging folder, add checksums, force it to disk, and only then give it its name."""
    staging = final.with_name(f"{_STAGING}{final.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    writer(staging)
    sums = {file.relative_to(staging).as_posix(): sha256_file(file) for file in _files(staging)}
    for file in _files(staging):
        _sync_file(file)
    atomic_write(staging / CHECKSUMS, json.dumps(sums, indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.replace(staging, final)
    _sync_folder(final.parent)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_intact(folder: Path) -> bool:
    """Whether every file that the checksums of a committed folder name is there and unchanged."""
    try:
        sums = read_json(folder / CHECKSUMS, "checksum list")
        return all(sha256_file(below(folder, name)) == value for name, value in sums.items())
    except (ArtifactError, OSError, ValueError):
        return False


def remove_staging(parent: Path) -> None:
    """Remove what an interrupted :func:`commit_folder` left behind."""
    for leftover in parent.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


class Lock:
    """A file that names its owner, so that two processes never write one run; a dead owner's lock is taken over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ArtifactError: a living process holds it.
        """
        if self.held:
            return
        owner = {"pid": os.getpid(), "birth": _birth(os.getpid()), "host": socket.gethostname()}
        draft = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.part")
        draft.write_text(json.dumps(owner), encoding="utf-8")
        try:
            self.held = _take(draft, self.path) or self._take_over(draft)
        finally:
            draft.unlink(missing_ok=True)
        if not self.held:
            raise ArtifactError(f"{self.path.parent}: another process is taking this run; choose another --out")

    def release(self) -> None:
        """Give the lock back, if it is held here."""
        if self.held:
            self.path.unlink(missing_ok=True)
            self.held = False

    def taken(self) -> bool:
        """Whether a living process holds it, this one or another."""
        try:
            self._refuse_living_owner(self.path.read_bytes())
        except FileNotFoundError:
            return False
        except ArtifactError:
            return True
        return False

    def _take_over(self, draft: Path) -> bool:
        """Replace a dead owner's lock; false when another process was quicker.

        Raises:
            ArtifactError: the owner is alive, or on another machine.
        """
        with _one_at_a_time(self.path.parent):
            with suppress(FileNotFoundError):
                self._refuse_living_owner(self.path.read_bytes())
                self.path.unlink()
            return _take(draft, self.path)

    def _refuse_living_owner(self, content: bytes) -> None:
        try:
            owner = json.loads(content)
            pid, birth, host = int(owner["pid"]), owner["birth"], owner["host"]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return
        if not 0 < pid < 1 << 31:
            return
        elsewhere = host != socket.gethostname()
        if elsewhere or (_alive(pid) and (birth is None or birth == _birth(pid))):
            raise ArtifactError(
                f"{self.path.parent}: process {pid} on {host} is writing this run; wait for it, choose another --out, "
                f"or, if it is gone, delete {self.path}"
            )


def _take(draft: Path, path: Path) -> bool:
    """Give the finished file ``draft`` the name ``path`` as well; false where that name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        return _create(path, draft.read_bytes())
    return True


def _create(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as handle:
            handle.write(content)
    except FileExistsError:
        return False
    return True


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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _birth(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, where the system tells; tells a reused pid from its owner."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
