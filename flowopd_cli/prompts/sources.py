"""The public sets as prompts: loaders of their files, and the registered sources ``geneval``, ``ocr`` and so on.

A registered source is a function of the split: ``test`` is the public file, fetched once; ``train`` is made here for
``geneval`` and fetched for ``ocr`` and ``pickscore``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts import make_geneval as prompt_geneval
from flowopd_cli.prompts.clauses import TAGS, faulty
from flowopd_cli.prompts.files import Row, read_rows, target
from flowopd_cli.prompts.public import fetch

TRAIN_PROMPTS, TRAIN_SEED = 50_000, 0


def load_geneval(path: str | Path) -> list[Prompt]:
    """GenEval's metadata, one object a line, as prompts whose ``id`` is the five-digit index of the official folders.

    Raises:
        PromptError: a line is not GenEval's metadata.
    """
    return [_checked(row, prompt) for row, prompt in _numbered(path, "geneval")]


def load_ocr(path: str | Path) -> list[Prompt]:
    """Prompts with a text in double quotes, one a line; ``metadata["target"]`` is the text of the first pair.

    Raises:
        PromptError: a line quotes nothing.
    """
    prompts = []
    for row, prompt in _numbered(path, "ocr"):
        quoted = target(prompt.text, {})
        if quoted is None:
            raise PromptError(f"{row.place}: no text in double quotes to write: {prompt.text[:80]!r}")
        prompts.append(replace(prompt, metadata={"target": quoted}))
    return prompts


def load_pickscore(path: str | Path) -> list[Prompt]:
    """Prompts of Pick-a-Pic, one a line."""
    return [prompt for _, prompt in _numbered(path, "pickscore")]


def load_drawbench(path: str | Path) -> list[Prompt]:
    """DrawBench's 200 prompts, of a file that may have each several times."""
    unique: dict[str, Prompt] = {}
    for _, prompt in _numbered(path, "drawbench"):
        unique.setdefault(prompt.text, replace(prompt, id=f"{len(unique):05d}"))
    return list(unique.values())


LOADERS: Mapping[str, Callable[[Path], list[Prompt]]] = {
    "geneval": load_geneval,
    "ocr": load_ocr,
    "pickscore": load_pickscore,
    "drawbench": load_drawbench,
}


def only_test(name: str, split: str) -> None:
    """Refuse another split than ``test`` of a public evaluation set, which has no other.

    Raises:
        PromptError: another one is asked for.
    """
    _split(name, split, ("test",))


def fetched(name: str, source: str | Path | None = None) -> list[Prompt]:
    """The evaluation prompts of ``geneval``, ``ocr``, ``pickscore`` or ``drawbench``, fetched or in the cache.

    ``source`` is a file, or a folder that holds it, to read in its place; when it is another file, a warning says so.

    Raises:
        PromptError: there is no such set, or a line of the file cannot be used.
        ArtifactError: the file is missing, cannot be fetched, or is not the one expected.
    """
    if name not in LOADERS:
        raise PromptError(f"no prompts {name!r}; known: {', '.join(LOADERS)}")
    local = None if source is None else Path(source)
    return LOADERS[name](fetch(name, local=local).path)


def geneval(split: str = "train") -> list[Prompt]:
    """The evaluation prompts, or 50,000 made here from seed 0."""
    if _split("geneval", split) == "test":
        return fetched("geneval")
    rows = prompt_geneval.make(TRAIN_PROMPTS, TRAIN_SEED)
    return [Prompt(row["id"], row["prompt"], "geneval", _metadata(row)) for row in rows]


def ocr(split: str = "train") -> list[Prompt]:
    """The public prompts with a text to write."""
    return fetched("ocr") if _split("ocr", split) == "test" else load_ocr(fetch("ocr-train").path)


def pickscore(split: str = "train") -> list[Prompt]:
    """The public prompts of Pick-a-Pic that are safe for work."""
    if _split("pickscore", split) == "test":
        return fetched("pickscore")
    return load_pickscore(fetch("pickscore-train").path)


def drawbench(split: str = "test") -> list[Prompt]:
    """DrawBench, which has a test split alone."""
    _split("drawbench", split, ("test",))
    return fetched("drawbench")


def _split(name: str, split: str, known: tuple[str, ...] = ("train", "test")) -> str:
    if split not in known:
        raise PromptError(f"prompts: {name}: no split {split!r}; known: {', '.join(known)}")
    return split


def _numbered(path: str | Path, task: str) -> list[tuple[Row, Prompt]]:
    """The rows of a file and their prompts, numbered from 00000 in its order, whatever they say of ids and tasks."""
    rows = read_rows(Path(path), task)
    if not rows:
        raise PromptError(f"prompts: {path}: no prompt in it")
    return [(row, Prompt(f"{index:05d}", row.text, task, row.metadata)) for index, row in enumerate(rows)]


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in {"task", "id"}}


def _checked(row: Row, prompt: Prompt) -> Prompt:
    fault = faulty(prompt.metadata) if prompt.metadata.get("tag") in TAGS else "its tag is none of GenEval's"
    if fault:
        raise PromptError(f"{row.place}: not GenEval's metadata: {fault}")
    return prompt
