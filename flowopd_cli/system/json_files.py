"""JSON files: read within bounds, a damaged one refused in one line. No torch here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.system.paths import reading

LARGEST = 64 << 20  # bytes


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; :class:`ArtifactError` if it is missing or damaged, :class:`UnreadableError` if it may
    not be read. ``what`` names it.
    """
    data = read_json_value(path, what)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: damaged {what} (not a JSON object)")
    return data


def read_json_value(path: Path, what: str) -> Any:
    """The JSON value in a file of at most :data:`LARGEST` bytes; raises as :func:`read_json`."""
    try:
        with reading(path), path.open("rb") as handle:
            content = handle.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        return _parsed(content)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such {what}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged {what} ({one_line(error)[:300]})") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, empty without a file; a last line torn by a crash is left out.

    Any other damaged line is an :class:`ArtifactError`.
    """
    try:
        with reading(path):
            lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        lines = []
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows: list[dict[str, Any]] = []
    for number, line in numbered:
        try:
            row = _parsed(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number != numbered[-1][0]:
            raise ArtifactError(f"{path}:{number}: not JSON, or not an object")
    return rows


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each row."""
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


def _parsed(content: bytes) -> Any:
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if b"\\ud" in content.lower():  # half a surrogate pair could never be written again
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value
