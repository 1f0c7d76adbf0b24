"""DPG-Bench's prompts and their questions (Hu et al. 2024, arXiv 2403.05135), from its file ``dpg_bench.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.public import fetch
from flowopd_cli.prompts.sources import check_split

NAME = "dpg-bench"
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
_ITEM = re.compile(r"[\w-]{1,100}", re.ASCII)


def prompts(split: str = "test", source: str | Path | None = None) -> list[Prompt]:
    """The prompts of the fetched file, or of ``source``, in the file's order.

    Raises :class:`PromptError`: another split, or a line that cannot be used.
    Raises :class:`ArtifactError`: the file is missing or cannot be fetched.
    """
    check_split(NAME, split, "test")
    return read(fetch(NAME, local=None if source is None else Path(source)).path)


def read(path: Path) -> list[Prompt]:
    """The prompts of a file; ``id`` is the item's, and ``metadata["questions"]`` has its questions in their order.

    Read as by the reference's script. It skips the first row, a question, so that the other questions of that item may
    depend on one that is not asked. A question whose number occurs again is replaced, and so is an item whose rows are
    interrupted by those of another.

    Raises :class:`PromptError`: the file cannot be read, lacks a column, or has a cell that cannot be used.
    """
    items: dict[str, tuple[str, dict[int, dict[str, Any]]]] = {}
    previous = None
    for number, (place, row) in enumerate(_rows(path)):
        item = row["item_id"].strip()
        if not _ITEM.fullmatch(item):
            raise PromptError(f"{place}: item_id {item[:80]!r} names a picture: letters, digits, - and _ only")
        if number == 0:
            continue
        if item != previous:
            items[item] = (row["text"].strip(), {})
        question = _question(place, row)
        items[item][1][question["id"]] = question
        previous = item
    if not items:
        raise PromptError(f"prompts: {path}: no prompt in it")
    return [
        Prompt(item, text, NAME, {"questions": list(questions.values())}) for item, (text, questions) in items.items()
    ]


def _question(place: str, row: Mapping[str, str]) -> dict[str, Any]:
    try:
        number = int(row["proposition_id"])
        parents = [int(parent) for parent in row["dependency"].split(",")]
    except ValueError as error:
        raise PromptError(f"{place}: proposition_id or dependency is not a whole number ({error})") from error
    return {
        "id": number,
        "question": row["question_natural_language"],
        "parents": [parent for parent in parents if parent != 0],
        "category": row["tuple"].split("(")[0].strip(),
    }


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """``file:line`` and the cells of every row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise PromptError(f"prompts: {path}: no column {absent[0]!r}: this is not DPG-Bench's dpg_bench.csv")
            for row in reader:
                place = f"{path}:{reader.line_num}"
                empty = [column for column in COLUMNS if not (row[column] or "").strip()]
                if empty:
                    raise PromptError(f"{place}: {empty[0]} is empty")
                yield place, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptError(f"prompts: {path}: cannot be read as CSV ({error})") from error
