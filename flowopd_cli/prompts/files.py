"""Prompt files read row by row: what a line may hold, and which line does not. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import PromptError

SUFFIXES = (".txt", ".jsonl")
LONGEST_LINE = 1 << 20  # bytes
LONGEST_PROMPT = 10_000  # characters
LONGEST_ID, LONGEST_TARGET = 200, 1000
SHOWN = 80
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """A prompt as it stands in a file; ``place`` is ``file:line``, ``id`` is ``None`` where the row has none."""

    place: str
    text: str
    task: str | None
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_rows(path: Path, task: str | None = None) -> list[Row]:
    """The prompts of a ``.txt`` file (one a line) or a ``.jsonl`` file, empty lines passed over.

    ``task`` is that of rows which name none.

    Raises:
        PromptError: no such file, another kind of file, or a line that cannot be used, named by its number: not UTF-8,
            too long, with control characters, not a JSON object with a text under ``prompt``, an ``id`` there twice.
    """
    if path.suffix not in SUFFIXES:
        raise PromptError(f"prompts: {path}: neither a registered source nor a .txt or .jsonl file")
    if path.suffix == ".txt":
        return [Row(place, _sound(place, line, "\t"), task) for place, line in numbered_lines(path)]
    rows = [_from_json(place, line, task) for place, line in numbered_lines(path)]
    _refuse_repeated_ids(rows)
    return rows


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """``file:line`` and text of every line with something on it, without the spaces around it.

    Only line feeds end a line: prompts may hold Unicode's other separators. A byte order mark is passed over.

    Raises:
        PromptError: it cannot be read, or a line is not UTF-8 or too long.
    """
    try:
        with path.open("rb") as handle:
            number = 0
            while line := handle.readline(LONGEST_LINE + 1):
                number += 1
                text = _decoded(f"{path}:{number}", line, first=number == 1).strip()
                if text:
                    yield f"{path}:{number}", text
    except FileNotFoundError as error:
        raise PromptError(f"prompts: {path}: no such file") from error
    except IsADirectoryError as error:
        raise PromptError(f"prompts: {path}: is a folder; name a .txt or .jsonl file in it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"prompts: {path}: cannot be read ({reason})") from error


def repeats(rows: Sequence[Row]) -> str | None:
    """A remark about prompts that a file has more than once; ``None`` where each is there once."""
    counts = Counter((row.task, row.text) for row in rows)
    again = {key for key, count in counts.items() if count > 1}
    if not again:
        return None
    first = next(row for row in rows if (row.task, row.text) in again)
    file, _, line = first.place.rpartition(":")
    return (
        f"prompts: {file}: {len(again)} of {len(counts)} prompts are there more than once, the first in line {line}: "
        "each is drawn as often as it is there"
    )


def target(text: str, metadata: Mapping[str, Any]) -> str | None:
    """The text to render: ``metadata["target"]``, else the text between its first two double quotes.

    ``None`` where neither is there, or it is no text, nothing but spaces, or too long to be written.
    """
    text_to_write = metadata.get("target")
    if text_to_write is None:
        parts = text.split('"', 2)
        text_to_write = parts[1] if len(parts) == 3 else ""
    if not isinstance(text_to_write, str | int | float) or len(str(text_to_write)) > LONGEST_TARGET:
        return None
    return str(text_to_write) if str(text_to_write).strip() else None


def _decoded(place: str, line: bytes, *, first: bool) -> str:
    if len(line) > LONGEST_LINE:
        raise PromptError(f"{place}: is longer than {LONGEST_LINE >> 20} MiB: is this a file of prompts, one a line?")
    if first and line.startswith(UTF16):
        raise PromptError(f"{place}: not UTF-8 text (it begins as UTF-16 does): save it as UTF-8")
    try:
        return line.removeprefix(BOM if first else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{place}: not UTF-8 text (byte {error.start} of the line): save it as UTF-8") from error


def _sound(place: str, text: str, allowed: str = "\t\n\r") -> str:
    """The text of a prompt.

    Raises:
        PromptError: it is too long, or holds what no text holds.
    """
    if len(text) > LONGEST_PROMPT:
        raise PromptError(f"{place}: a prompt of {len(text)} characters; at most {LONGEST_PROMPT} are taken")
    for letter in text:
        if (letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff") and letter not in allowed:
            raise PromptError(
                f"{place}: holds the character {ascii(letter)[1:-1]}, which is no part of a text: remove it"
            )
    return text


def _from_json(place: str, line: str, task: str | None) -> Row:
    try:
        row: Any = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PromptError(f"{place}: not JSON ({reason})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise PromptError(f'{place}: needs an object with a text under "prompt"')
    named = row.get("task", task)
    if "task" in row and (not isinstance(named, str) or not named or not named.isprintable()):
        raise PromptError(f'{place}: "task" must be a name')
    row_id = row.get("id")
    if row_id is not None and (isinstance(row_id, bool) or not isinstance(row_id, str | int)):
        raise PromptError(f'{place}: "id" must be a text or a whole number')
    if row_id is not None and (not str(row_id) or not str(row_id).isprintable() or len(str(row_id)) > LONGEST_ID):
        raise PromptError(f'{place}: "id" must have 1 to {LONGEST_ID} characters that can be printed')
    metadata = {key: value for key, value in row.items() if key not in {"task", "id"}}
    return Row(place, _sound(place, row["prompt"]), named, None if row_id is None else str(row_id), metadata)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_repeated_ids(rows: Sequence[Row]) -> None:
    """Ids name pictures and their noise, so each names one prompt."""
    places: dict[str, str] = {}
    for row in rows:
        if row.id is None:
            continue
        if row.id in places:
            line = places[row.id].rpartition(":")[2]
            raise PromptError(
                f"{row.place}: the id {row.id[:SHOWN]!r} is there already, in line {line}: give each prompt another "
                "id, or none"
            )
        places[row.id] = row.place
