"""Checks of untrusted names: files, folders, repositories and revisions of the Hub. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from flowopd_cli.errors import ArtifactError, UnreadableError

SHOWN = 120
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./-]{0,254}", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text can be a repository of the Hub: ``owner/name``, in the characters that the Hub allows."""
    parts = text.split("/")
    return len(parts) == 2 and not re.search(r"--|\.\.|\.git$", text) and all(map(_PART.fullmatch, parts))


def is_revision(text: str) -> bool:
    """Whether a text can be a branch, a tag or a commit of a repository."""
    return _REVISION.fullmatch(text) is not None and ".." not in text


def is_branch(text: str) -> bool:
    """Whether a text can be a branch: a revision that is neither a commit nor one of the Hub's references."""
    return is_revision(text) and not re.fullmatch(r"[0-9a-f]{40}|refs/.*|.*(/|\.lock)|.*//.*", text)


def expand_home(text: str) -> str:
    """The text with a leading ``~/`` or ``~user/`` replaced by that home folder."""
    match = re.match(r"~[\w.-]*(?=/)", text)
    return os.path.expanduser(match[0]) + text[match.end() :] if match else text


def below(folder: Path, name: str) -> Path:
    """The path ``name`` inside ``folder``; :class:`ArtifactError` if it leads elsewhere or is not a file name."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
    if not parts or absolute or ".." in parts or re.search("[\0-\x1f\ud800-\udfff]", name):
        raise ArtifactError(f"{folder}: {name[:SHOWN]!r} is not the name of a file in it")
    return folder / name


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read ``path`` into an :class:`UnreadableError`; a missing file is none."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        place = error.filename or path
        raise UnreadableError(
            f"{place}: cannot be read ({error.strerror}); make it readable, or move it away"
        ) from error


def cache_dir() -> Path:
    """``$FLOWOPD_CACHE``, or ``flowopd`` in the user's cache directory."""
    if root := os.environ.get("FLOWOPD_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowopd"
