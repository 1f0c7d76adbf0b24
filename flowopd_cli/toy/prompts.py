"""Prompts of the toy world in GenEval's metadata form, and codes to write; three disjoint splits, seeded."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from itertools import islice, permutations, product
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.prompts.clauses import RELATIONS, TAGS
from flowopd_cli.toy.draw import GLYPHS, INKS, SHAPES

SEED = 20260508
SPLITS = ("train", "validation", "test")
OPENINGS = ("a photo of", "a picture of", "a print of", "a drawing of")
SIGNS = ("a sign that says", "a label with", "a card with", "a stamp that says")
COUNTS = {2: "two", 3: "three", 4: "four"}
PER_TAG = {"validation": 16, "test": 24}
CODES = {"train": 1200, "validation": 96, "test": 144}
CODE_LENGTH = 3


def _scenes(tag: str) -> list[tuple[str, list[dict], list[dict]]]:
    """Every ``(words, include, exclude)`` of one tag."""
    pairs = list(permutations(SHAPES, 2))
    if tag == "single_object":
        return [(f"a {kind}", [_clause(kind)], []) for kind in SHAPES]
    if tag == "colors":
        return [(_colored(color, kind), [_clause(kind, color=color)], []) for color, kind in product(INKS, SHAPES)]
    if tag == "counting":
        return [
            (f"{COUNTS[n]} {kind}{'es' if kind.endswith('s') else 's'}", [_clause(kind, n)], [_clause(kind, n + 1)])
            for n, kind in product(COUNTS, SHAPES)
        ]
    if tag == "two_object":
        return [(f"a {first} and a {second}", [_clause(first), _clause(second)], []) for first, second in pairs]
    if tag == "position":  # GenEval's order: the reference first, then the subject with its relation to it
        return [
            (f"a {first} {relation} a {second}", [_clause(second), _clause(first, position=[relation, 0])], [])
            for relation, (first, second) in product(RELATIONS, pairs)
        ]
    return [
        (f"{_colored(one, a)} and {_colored(two, b)}", [_clause(a, color=one), _clause(b, color=two)], [])
        for (a, b), (one, two) in product(pairs, permutations(INKS, 2))
    ]


def _clause(kind: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": kind, "count": count, **more}


def _colored(color: str, kind: str) -> str:
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {kind}"


@lru_cache(maxsize=1)
def _geneval_splits() -> dict[str, tuple[Prompt, ...]]:
    splits: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for tag in TAGS:
        texts = [
            (f"{opening} {words}", include, exclude) for opening in OPENINGS for words, include, exclude in _scenes(tag)
        ]
        random.Random(f"{SEED}/{tag}").shuffle(texts)
        test, validation = min(PER_TAG["test"], len(texts) // 3), min(PER_TAG["validation"], len(texts) // 4)
        cuts = {"test": texts[:test], "validation": texts[test:][:validation], "train": texts[test + validation :]}
        for split, entries in cuts.items():
            splits[split] += [_prompt(split, tag, i, *entry) for i, entry in enumerate(entries)]
    return {name: tuple(prompts) for name, prompts in splits.items()}


def _prompt(split: str, tag: str, index: int, text: str, include: list[dict], exclude: list[dict]) -> Prompt:
    metadata = {"tag": tag, "include": include, "prompt": text} | ({"exclude": exclude} if exclude else {})
    return Prompt(f"toy-geneval/{split}/{tag}/{index:04d}", text, "geneval", metadata)


def geneval(split: str = "train") -> list[Prompt]:
    """Composition prompts of the six tags."""
    return list(_geneval_splits()[split])


def train_by_tag() -> dict[str, list[Prompt]]:
    """The training prompts of each tag."""
    return {tag: [p for p in geneval("train") if p.metadata["tag"] == tag] for tag in TAGS}


@lru_cache(maxsize=1)
def codes() -> dict[str, tuple[str, ...]]:
    """Three-letter codes of each split; no code is in two of them."""
    words = ["".join(letters) for letters in product(GLYPHS, repeat=CODE_LENGTH)]
    random.Random(f"{SEED}/codes").shuffle(words)
    remaining = iter(words)
    return {name: tuple(islice(remaining, count)) for name, count in CODES.items()}


def ocr(split: str = "train") -> list[Prompt]:
    """Prompts with the text to write in double quotes."""
    return [
        Prompt(f"toy-ocr/{split}/{i:04d}", f'{SIGNS[i % len(SIGNS)]} "{code}"', "ocr", {"target": code})
        for i, code in enumerate(codes()[split])
    ]


def everything(split: str = "train") -> list[Prompt]:
    """Both tasks, for rewards that apply to any picture."""
    return geneval(split) + ocr(split)


def quality(split: str = "train") -> list[Prompt]:
    """The same prompts as a task of their own, for a teacher of the quality."""
    return _as_task("quality", split)


def preference(split: str = "train") -> list[Prompt]:
    """The same prompts as a task of their own, for a teacher of the preference."""
    return _as_task("preference", split)


def _as_task(task: str, split: str) -> list[Prompt]:
    return [replace(prompt, id=f"toy-{task}/{prompt.id}", task=task) for prompt in everything(split)]
