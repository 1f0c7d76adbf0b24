"""Pictures of another program in any layout, listed with their prompts in a CSV file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, RecipeError, one_line
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests, collect, digest_of, select
from flowopd_cli.suites.base import Suite, SuiteGroup
from flowopd_cli.suites.layouts import FLAT, Place, has_picture_suffix
from flowopd_cli.system.files import files_below, is_file
from flowopd_cli.system.paths import below

COLUMNS = ("file", "prompt")
TASK = "listed"


@dataclass(frozen=True)
class ListedPicture:
    """A row of the list: a file below the folder, its prompt, and that prompt's metadata, ``None`` without any."""

    file: str
    text: str
    metadata: Mapping[str, Any] | None = None

    @property
    def prompt(self) -> Prompt:
        """The prompt, whose id is a function of text and metadata: that of equal rows of any list."""
        metadata = dict(self.metadata or {})
        content = json.dumps([self.text, metadata], sort_keys=True)
        return Prompt(hashlib.sha256(content.encode()).hexdigest()[:16], self.text, TASK, metadata)


def read_list(path: Path, folder: Path) -> list[ListedPicture]:
    """The rows of a CSV file with the columns ``file``, ``prompt`` and, if it has it, ``metadata``, a JSON object.

    Other columns are ignored.

    Raises :class:`RecipeError`: the file cannot be read, lacks a column, or has a faulty row; a file is not in the
    folder, or is listed twice; or a picture in the folder has no row.
    """
    source = f"--images-csv {path}"
    lines: dict[str, int] = {}
    pictures: list[ListedPicture] = []
    for line, picture in _rows(path, source):
        if lines.setdefault(picture.file, line) != line:
            raise RecipeError(f"{source}: line {line}: line {lines[picture.file]} lists {picture.file} too")
        pictures.append(picture)
    missing = [picture.file for picture in pictures if not is_file(folder / picture.file)]
    if missing:
        at = f"{len(missing)} of {len(pictures)} files are not in {folder}, the first is {missing[0]}"
        raise RecipeError(f"{source}: line {lines[missing[0]]}: {at}")
    unlisted = [name for name in _pictures(folder) if name not in lines]
    if unlisted:
        raise RecipeError(
            f"--images {folder}: {len(unlisted)} pictures have no row in {path}, the first is {unlisted[0]}: add "
            "their rows, or move them to another folder"
        )
    return pictures


def plan_listed(
    suites: Sequence[Suite], groups: Sequence[SuiteGroup], spec: EvalSpec, listed: Sequence[ListedPicture]
) -> Requests:
    """The requests of the suites for listed pictures, which are all that there are of a prompt, in the list's order.

    A row without metadata is of the suite's prompt of that text, if it has one. A suite whose prompts, or numbers of
    pictures, are not its own is among :attr:`Requests.others`.
    """
    requests: list[PictureRequest] = []
    others: dict[str, str] = {}
    for suite in suites:
        own = suite.prompts(spec.split) if any(picture.metadata is None for picture in listed) else []
        by_text = {prompt.text: prompt for prompt in reversed(own)}
        prompts: dict[tuple[str, str], Prompt] = {}
        files: dict[tuple[str, str], list[str]] = {}
        for picture in listed:
            prompt = (by_text.get(picture.text) if picture.metadata is None else None) or picture.prompt
            prompts[prompt.task, prompt.id] = prompt
            files.setdefault((prompt.task, prompt.id), []).append(picture.file)
        files = {key: names[: spec.images] for key, names in files.items()}
        counts = Counter({prompts[key].text: len(names) for key, names in files.items() if key[0] != TASK})
        full = Counter(prompt.text for prompt in own for _ in range(spec.images or suite.images))
        if len(counts) < len(files) or counts != full or not suite.has_own_prompts():
            others[suite.name] = digest_of([prompts[key] for key in sorted(prompts)], metadata=True)
        for position, prompt in select([*prompts.values()], spec.limit):
            names = files[prompt.task, prompt.id]
            for index, name in enumerate(names):
                place = Place(prompt, position, index, len(names))
                requests.append(PictureRequest(prompt, place, suite.picture_folder, FLAT, (suite.name,), file=name))
    return Requests(tuple(suites), tuple(groups), collect(requests), others=others)


def _rows(path: Path, source: str) -> Iterator[tuple[int, ListedPicture]]:
    """The rows with the numbers of their last lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or ()
            for column in COLUMNS:
                if column not in columns:
                    heads = ", ".join(columns) or "nothing"
                    raise RecipeError(
                        f"{source}: no column {column!r} (its first line has {heads}): it needs file and prompt, and "
                        "may have metadata"
                    )
            empty = True
            for row in reader:
                empty = False
                yield reader.line_num, _picture(f"{source}: line {reader.line_num}", row)
            if empty:
                raise RecipeError(f"{source}: lists no picture")
    except FileNotFoundError as error:
        raise RecipeError(f"{source}: no such file") from error
    except (OSError, ValueError, csv.Error) as error:
        raise RecipeError(f"{source}: cannot be read as CSV in UTF-8 ({one_line(error)[:200]})") from error


def _picture(place: str, row: Mapping[str | None, Any]) -> ListedPicture:
    name, text = ((row[column] or "").strip() for column in COLUMNS)
    if not name or not text:
        raise RecipeError(f"{place}: has no {'prompt' if name else 'file'}")
    if None in row:
        raise RecipeError(f"{place}: has more cells than the first line: put a text with commas in quotes")
    try:
        below(Path(), name)
    except ArtifactError as error:
        raise RecipeError(f"{place}: {name[:80]!r} is not the name of a file below the folder of --images") from error
    raw = (row.get("metadata") or "").strip()
    return ListedPicture(PurePosixPath(name).as_posix(), text, _metadata(place, raw) if raw else None)


def _metadata(place: str, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{place}: its metadata is not JSON ({one_line(error)[:120]})") from error
    if not isinstance(metadata, dict):
        raise RecipeError(f"{place}: its metadata is not a JSON object, such as {{}}")
    return metadata


def _pictures(folder: Path) -> Iterable[str]:
    """The files of a folder that are named as pictures; hidden ones are the system's."""
    return (
        name
        for name, path in files_below(folder).items()
        if has_picture_suffix(path) and not any(part.startswith(".") for part in name.split("/"))
    )
