"""Checks of untrusted names: files, folders, repositories and revisions of the Hub. No torch here."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from flowopd_cli.errors import ArtifactError

SHOWN = 120
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./-]{0,254}", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text can be a repository of the Hub: ``owner/name``, of the letters that the Hub takes."""
    parts = text.split("/")
    return len(parts) == 2 and not re.search(r"--|\.\.|\.git$", text) and all(map(_PART.fullmatch, parts))


def is_revision(text: str) -> bool:
    """Whether a text can be a branch, a tag or a commit of a repository."""
    return _REVISION.fullmatch(text) is not None and ".." not in text


def is_branch(text: str) -> bool:
    """Whether a text can be a branch: a revision that is neither a commit nor one of the Hub's references."""
    return is_revision(text) and not re.fullmatch(r"[0-9a-f]{40}|refs/.*|.*(/|\.lock)|.*//.*", text)


def is_file(path: str | Path) -> bool:
    """Whether there is a file; a name that no file can have (too long, with a NUL) is none.

    Raises:
        ArtifactError: a folder on the way may not be looked into.
    """
    try:
        return Path(path).is_file()
    except PermissionError as error:
        raise _closed(path) from error
    except (OSError, ValueError):
        return False


def is_dir(path: str | Path) -> bool:
    """Whether there is a folder, likewise.

    Raises:
        ArtifactError: a folder on the way may not be looked into.
    """
    try:
        return Path(path).is_dir()
    except PermissionError as error:
        raise _closed(path) from error
    except (OSError, ValueError):
        return False


def below(folder: Path, name: str) -> Path:
    """The path ``name`` in ``folder``, which it may not leave.

    Raises:
        ArtifactError: it is absolute, climbs out with ``..``, or is no name at all.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
    if not parts or absolute or ".." in parts or any(map(_unwritable, name)):
        raise ArtifactError(f"{folder}: {name[:SHOWN]!r} is no name of a file in it")
    return folder / name


def _unwritable(letter: str) -> bool:
    return letter < " " or "\ud800" <= letter <= "\udfff"


def _closed(path: str | Path) -> ArtifactError:
    return ArtifactError(f"{path}: may not be looked at (permission denied)")


def cache_dir() -> Path:
    """``$FLOWOPD_CACHE``, or ``flowopd`` in the user's cache directory."""
    root = os.environ.get("FLOWOPD_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowopd"
