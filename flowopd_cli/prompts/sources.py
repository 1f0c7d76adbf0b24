"""The registered sources ``geneval``, ``ocr``, ``pickscore`` and ``drawbench``, functions of the split.

``test`` is the public file; ``train`` is generated for ``geneval`` and fetched for ``ocr`` and ``pickscore``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts import make_geneval
from flowopd_cli.prompts.atoms import Atoms
from flowopd_cli.prompts.clauses import TAGS, faulty
from flowopd_cli.prompts.files import Row, read_rows
from flowopd_cli.prompts.public import fetch
from flowopd_cli.prompts.targets import parse_target, parse_texts

TRAIN_PROMPTS, TRAIN_SEED = 50_000, 0
LONGTEXT = {"longtext-en": "en", "longtext-zh": "zh"}  # the language of each set


def read_public(task: str, path: str | Path) -> list[Prompt]:
    """The prompts of a public file; their ``id`` is their index in five digits, the name of GenEval's folders.

    Prompts of GenEval and GenEval 2 have its metadata; those of ``ocr`` have their first quotation as ``target``;
    those of LongText-Bench have their ``language``. DrawBench's file repeats its 200 prompts; each is returned once.

    Raises :class:`PromptError`: a line is not the benchmark's metadata or, for ``ocr``, quotes nothing.
    """
    rows = read_rows(Path(path), task)
    if not rows:
        raise PromptError(f"prompts: {path}: no prompt in it")
    if task == "drawbench":
        rows = list({row.text: row for row in rows}.values())
    return [Prompt(f"{index:05d}", row.text, task, _metadata(task, row)) for index, row in enumerate(rows)]


def _metadata(task: str, row: Row) -> Mapping[str, Any]:
    if task == "ocr":
        return {"target": parse_target(row.place, row.text, {})}
    if task == "geneval":
        fault = faulty(row.metadata) if row.metadata.get("tag") in TAGS else "its tag is none of GenEval's"
        if fault:
            raise PromptError(f"{row.place}: not GenEval's metadata: {fault}")
    if task == "geneval2":
        try:
            Atoms.read(row.metadata)
        except ValueError as error:
            raise PromptError(f"{row.place}: not GenEval 2's metadata: {error}") from error
    if task in LONGTEXT:
        parse_texts(row.place, row.metadata)
        if type(row.metadata.get("prompt_id")) is not int:
            raise PromptError(f'{row.place}: not LongText-Bench\'s metadata: "prompt_id" must be a whole number')
        return {**row.metadata, "language": LONGTEXT[task]}
    return row.metadata


def check_split(name: str, split: str, *known: str) -> None:
    """Refuse a split that a set of prompts does not have.

    Raises :class:`PromptError`: ``split`` is not in ``known``.
    """
    if split not in known:
        raise PromptError(f"prompts: {name}: no split {split!r}; known: {', '.join(known)}")


def evaluation_prompts(name: str, split: str = "test", source: str | Path | None = None) -> list[Prompt]:
    """The ``test`` split of a set that :func:`read_public` reads, fetched or from the cache.

    ``source`` is a file to read in its place, or a folder that holds it; a warning says if it is another file.

    Raises :class:`PromptError`: it is another split, or a line of the file cannot be used.
    Raises :class:`ArtifactError`: the file is missing, cannot be fetched, or has another digest than the pinned one.
    """
    check_split(name, split, "test")
    return read_public(name, fetch(name, local=None if source is None else Path(source)).path)


def geneval(split: str = "train") -> list[Prompt]:
    """The evaluation prompts, or 50,000 training prompts generated from seed 0."""
    check_split("geneval", split, "train", "test")
    if split == "test":
        return evaluation_prompts("geneval")
    rows = make_geneval.make(TRAIN_PROMPTS, TRAIN_SEED)
    return [Prompt(row.pop("id"), row["prompt"], row.pop("task"), row) for row in rows]


def ocr(split: str = "train") -> list[Prompt]:
    """The public prompts with a text to write."""
    return _train_or_test("ocr", split)


def pickscore(split: str = "train") -> list[Prompt]:
    """The public prompts of Pick-a-Pic that are safe for work."""
    return _train_or_test("pickscore", split)


def drawbench(split: str = "test") -> list[Prompt]:
    """DrawBench, which has only a test split."""
    return evaluation_prompts("drawbench", split)


def _train_or_test(name: str, split: str) -> list[Prompt]:
    check_split(name, split, "train", "test")
    return evaluation_prompts(name) if split == "test" else read_public(name, fetch(f"{name}-train").path)
