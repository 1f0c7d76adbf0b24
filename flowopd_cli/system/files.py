"""Files that survive a crash and a full disk: atomic writes, checksummed folders. No torch here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from flowopd_cli.errors import ArtifactError, StorageError, UnreadableError
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import below, reading

CHECKSUMS = "checksums.json"
_STAGING, _PART = ".staging-", ".part"
# The way out of an error of the system, by its number.
HELP = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "choose a place that may be written to",
    errno.EACCES: "choose a place that may be written to",
    errno.EPERM: "choose a place that may be written to",
}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an error of writing to ``path`` into a :class:`StorageError` with the reason and the free space."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        raise StorageError(f"{path}: cannot be written ({_reason(path, cause)})") from cause


def atomic_write(path: Path, content: bytes | str, *, lasting: bool = True) -> None:
    """Replace ``path`` by ``content``: a reader sees the old file or the new one, never a part.

    A pipe or a device, such as ``/dev/stdout``, is written to and stays.
    Without ``lasting`` there is no wait for the disk: the file survives a crash of the process, not of the machine.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    with storing(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as handle:
                handle.write(data)
                handle.flush()
                if lasting:
                    os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if lasting:
            sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add ``text`` to the end of a file; :func:`read_json_lines` ignores a last line torn by a crash."""
    with storing(path), path.open("a", encoding="utf-8") as handle:
        handle.write(text)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    running = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            running.update(block)
    return running.hexdigest()


def files_below(folder: Path) -> dict[str, Path]:
    """All files of a folder and its sub-folders, by their names relative to it, sorted."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def combined_sha256(digests: Mapping[str, str]) -> str:
    """One SHA-256 over the names and digests of several files, in any order."""
    lines = sorted(f"{name} {digest}" for name, digest in digests.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def commit_folder(final: Path, writer: Callable[[Path], None]) -> None:
    """Let ``writer`` fill a staging folder, add checksums, force it to disk, then rename it to ``final``.

    After a :class:`StorageError` the folder that had the name before is unchanged.
    """
    staging, replaced = (final.with_name(f"{_STAGING}{word}{final.name}") for word in ("", "replaced-"))
    with storing(final):
        try:
            for leftover in (staging, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
            staging.mkdir(parents=True)
            writer(staging)
            written = files_below(staging)
            sums = {name: sha256_file(path) for name, path in written.items()}
            for path in written.values():
                sync_file(path)
            atomic_write(staging / CHECKSUMS, json.dumps(sums, indent=1))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # the space is needed to close the run
            raise
        if final.exists():
            os.replace(final, replaced)
        os.replace(staging, final)
        sync_folder(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def drop_folder(path: Path) -> None:
    """Remove a folder atomically: a reader sees all of it or nothing."""
    dropped = path.with_name(f"{_STAGING}dropped-{path.name}")
    with suppress(OSError):
        shutil.rmtree(dropped, ignore_errors=True)
        os.replace(path, dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def verified_digests(folder: Path) -> dict[str, str] | None:
    """SHA-256 of each file that the checksums of a committed folder name; ``None`` if one is missing or changed.

    Raises :class:`UnreadableError`: one may not be read.
    """
    try:
        sums = read_json(folder / CHECKSUMS, "checksum list")
        with reading(folder):
            intact = all(sha256_file(below(folder, name)) == value for name, value in sums.items())
        return sums if sums and intact else None
    except UnreadableError:
        raise
    except (ArtifactError, OSError, ValueError):
        return None


def is_intact(folder: Path) -> bool:
    """Whether every file that the checksums of a committed folder name is there and unchanged.

    Raises as :func:`verified_digests`.
    """
    return verified_digests(folder) is not None


def is_sealed(folder: Path) -> bool:
    """Whether a folder has checksums; one made by another program has none."""
    return (folder / CHECKSUMS).exists()


def is_leftover(path: Path) -> bool:
    """Whether an interrupted :func:`atomic_write` or :func:`commit_folder` left this behind, by its name."""
    return path.name.startswith(_STAGING) or (path.name.startswith(".") and path.name.endswith(_PART))


def remove_leftovers(folder: Path) -> None:
    """Remove the leftovers in a folder."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_leftover(path):
            with suppress(OSError):
                remove(path)


def sync_file(path: Path) -> None:
    """Force a file's content to disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where the system supports it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(path: Path, error: BaseException | None) -> str:
    number, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    reason = text or " ".join(str(error).split())
    place = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    with suppress(OSError):
        if place is not None:
            reason += f"; {shutil.disk_usage(place).free:,} bytes are free there"
    return reason + (f"; {HELP[number]}" if number in HELP else "")


def is_file(path: str | Path) -> bool:
    """Whether ``path`` is a file; false for an impossible name. :class:`ArtifactError` without access to its folder."""
    return _test(Path.is_file, path)


def is_dir(path: str | Path) -> bool:
    """Whether ``path`` is a folder; errors as for :func:`is_file`."""
    return _test(Path.is_dir, path)


def _test(test: Callable[[Path], bool], path: str | Path) -> bool:
    try:
        return test(Path(path))
    except PermissionError as error:
        raise ArtifactError(f"{path}: cannot be accessed (permission denied)") from error
    except (OSError, ValueError):
        return False
