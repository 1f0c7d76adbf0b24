"""Prompt files, read and validated row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError

SUFFIXES = (".txt", ".jsonl")
LONGEST_LINE = 1 << 20  # bytes
LONGEST_PROMPT = 10_000  # characters
LONGEST_ID = 200
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """A prompt of a file; ``place`` is ``file:line``."""

    place: str
    text: str
    task: str | None
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_rows(path: Path, task: str | None = None) -> list[Row]:
    """The prompts of a ``.txt`` file (one a line) or a ``.jsonl`` file without its empty lines.

    ``task`` is the default for rows without one.

    Raises :class:`PromptError`: no such file, another kind of file, or an invalid line, named by its number: not UTF-8,
    too long, with control characters, not a JSON object with a text under ``prompt``, an ``id`` that another line has.
    """
    if path.suffix not in SUFFIXES:
        raise PromptError(f"prompts: {path}: neither a registered source nor a .txt or .jsonl file")
    if path.suffix == ".txt":
        return [Row(place, _checked_text(place, line, "\t"), task) for place, line in _numbered_lines(path)]
    rows = [_from_json(place, line, task) for place, line in _numbered_lines(path)]
    _refuse_repeated_ids(rows)
    return rows


def load_prompts(
    source: str,
    *,
    task: str | None = None,
    split: str = "train",
    limit: int | None = None,
    id_prefix: str | None = None,
) -> list[Prompt]:
    """The prompts of a registered source, or of a ``.txt`` (one a line) or ``.jsonl`` file.

    A JSONL row, ``{"prompt": …, "task"?: …, …}``, is the prompt's metadata. ``task`` is that of rows which name none;
    ``split`` applies to registered sources. Rows without an id get ``id_prefix:line``, by default ``source:line``.

    Raises :class:`PromptError`: no such file, an invalid line, or a prompt without a task.
    """
    if source in registry.PROMPTS.names():
        prompts: list[Prompt] = list(registry.PROMPTS.load(source)(split))
        prompts = [prompt for prompt in prompts if task is None or prompt.task == task]
    else:
        prompts = [_prompt(row, id_prefix or str(Path(source))) for row in read_rows(Path(source), task)]
    if not prompts:
        raise PromptError(f"prompts: {source}: no prompt in it" + (f" of task {task!r}" if task else ""))
    return prompts[:limit]


def _prompt(row: Row, id_prefix: str) -> Prompt:
    if row.task is None:
        raise PromptError(f'{row.place}: no task: write "task" in a .jsonl row or give --prompts FILE,task=NAME')
    row_id = f"{id_prefix}:{row.place.rpartition(':')[2]}" if row.id is None else row.id
    return Prompt(row_id, row.text, row.task, row.metadata)


def _numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """``file:line`` and the stripped text of every line that is not empty.

    Only line feeds end a line: prompts may hold Unicode's other separators.
    """
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(iter(partial(handle.readline, LONGEST_LINE + 1), b""), start=1):
                if text := _decode(f"{path}:{number}", line, first=number == 1).strip():
                    yield f"{path}:{number}", text
    except FileNotFoundError as error:
        raise PromptError(f"prompts: {path}: no such file") from error
    except IsADirectoryError as error:
        raise PromptError(f"prompts: {path}: is a folder; name a .txt or .jsonl file in it") from error
    except (OSError, ValueError) as error:
        raise PromptError(f"prompts: {path}: cannot be read ({getattr(error, 'strerror', error)})") from error


def repeats(rows: Sequence[Row]) -> str | None:
    """A remark about repeated prompts of a file, ``None`` if there are none."""
    counts = Counter((row.task, row.text) for row in rows)
    repeated = [row for row in rows if counts[row.task, row.text] > 1]
    if not repeated:
        return None
    file, _, line = repeated[0].place.rpartition(":")
    number = sum(count > 1 for count in counts.values())
    return (
        f"prompts: {file}: {number} of {len(counts)} prompts are there more than once, the first in line {line}: "
        "each is drawn as often as it is there"
    )


def _decode(place: str, line: bytes, *, first: bool) -> str:
    if len(line) > LONGEST_LINE:
        raise PromptError(f"{place}: is longer than {LONGEST_LINE >> 20} MiB: is this a file of prompts, one a line?")
    if first and line.startswith(UTF16):
        raise PromptError(f"{place}: not UTF-8 text (it begins as UTF-16 does): save it as UTF-8")
    try:
        return line.removeprefix(BOM if first else b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{place}: not UTF-8 text (byte {error.start} of the line): save it as UTF-8") from error


def _checked_text(place: str, text: str, allowed: str = "\t\n\r") -> str:
    if len(text) > LONGEST_PROMPT:
        raise PromptError(f"{place}: a prompt of {len(text)} characters; at most {LONGEST_PROMPT} are taken")
    for letter in text:
        if (letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff") and letter not in allowed:
            raise PromptError(f"{place}: holds the control character {ascii(letter)[1:-1]}: remove it")
    return text


def _from_json(place: str, line: str, task: str | None) -> Row:
    try:
        row: Any = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PromptError(f"{place}: not JSON ({reason})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise PromptError(f'{place}: needs an object with a text under "prompt"')
    task = row.get("task", task)
    if "task" in row and (not isinstance(task, str) or not task or not task.isprintable()):
        raise PromptError(f'{place}: "task" must be a name')
    row_id = row.get("id")
    if row_id is not None:
        if isinstance(row_id, bool) or not isinstance(row_id, str | int):
            raise PromptError(f'{place}: "id" must be a text or a whole number')
        row_id = str(row_id)
        if not row_id.isprintable() or not 1 <= len(row_id) <= LONGEST_ID:
            raise PromptError(f'{place}: "id" must have 1 to {LONGEST_ID} characters that can be printed')
    metadata = {key: value for key, value in row.items() if key not in {"task", "id"}}
    return Row(place, _checked_text(place, row["prompt"]), task, row_id, metadata)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_repeated_ids(rows: Sequence[Row]) -> None:
    """Refuse two prompts with one id, which names their pictures and noise."""
    places: dict[str, str] = {}
    for row in rows:
        if row.id is not None and places.setdefault(row.id, row.place) != row.place:
            line = places[row.id].rpartition(":")[2]
            raise PromptError(
                f"{row.place}: line {line} has the id {row.id[:80]!r} too: give each prompt its own id, or none"
            )
