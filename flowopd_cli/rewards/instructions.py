"""Questions that the authors of a judge published, read out of their own source files; none of them is shipped.

A judge gives its published figures for its question word for word, blanks included. The file is fetched once, checked
by its SHA-256, and only parsed, never run.
"""

from __future__ import annotations

import ast
import zipfile
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.rewards.weights import download


@dataclass(frozen=True)
class SourceFile:
    """A Python file at a URL, or a member of the wheel there, with the SHA-256 of what is fetched."""

    url: str
    sha256: str
    member: str = ""
    name: str | None = None  # in the cache

    def literal(self, phrase: str) -> str:
        """The longest string in the file with a phrase; fields of an f-string become ``{expression}``.

        Raises :class:`ArtifactError`: the file cannot be fetched, or has another digest.
        """
        path = download(self.url, sha256=self.sha256, name=self.name)
        return literal(_member(path, self.member) if self.member else path.read_text(encoding="utf-8"), phrase)


def literal(code: str, phrase: str) -> str:
    """The longest string of a Python source that has a phrase; fields of an f-string become ``{expression}``."""
    texts = [text for node in ast.walk(ast.parse(code)) if phrase in (text := _text(node))]
    if not texts:
        raise ArtifactError(f"no string of the file has {phrase!r}")
    return max(texts, key=len)


def read_instruction(reward: str, path: str, *marks: str) -> str:
    """A user's own instruction, from a text file in which each of ``marks`` occurs once.

    Raises :class:`RewardError`: it cannot be read, or a mark is missing or repeated.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{reward}: instruction {path}: cannot be read as text ({error})") from error
    for mark in marks:
        if text.count(mark) != 1:
            raise RewardError(f"{reward}: instruction {path}: needs {mark} once, has it {text.count(mark)} times")
    return text


def _member(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def _text(node: ast.AST) -> str:
    """The text of a string or f-string, empty for any other part of the program."""
    match node:
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
        case ast.FormattedValue(value=field):
            return f"{{{ast.unparse(field)}}}"
        case ast.Constant(value=str(text)):
            return text
        case _:
            return ""
