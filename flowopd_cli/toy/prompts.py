"""Prompts of the toy world in GenEval's metadata form, and codes to write; three disjoint splits, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations, product

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


def plural(kind: str) -> str:
    """The plural as GenEval's prompts write it."""
    return kind + ("es" if kind.endswith("s") else "s")


def _scenes(tag: str) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """Every ``(words, include, exclude)`` of one tag."""
    if tag == "single_object":
        for kind in SHAPES:
            yield f"a {kind}", [{"class": kind, "count": 1}], []
    elif tag == "colors":
        for color, kind in product(INKS, SHAPES):
            yield f"{_article(color)} {color} {kind}", [{"class": kind, "count": 1, "color": color}], []
    elif tag == "counting":
        for count, kind in product(COUNTS, SHAPES):
            include = [{"class": kind, "count": count}]
            yield f"{COUNTS[count]} {plural(kind)}", include, [{"class": kind, "count": count + 1}]
    elif tag == "two_object":
        for first, second in permutations(SHAPES, 2):
            yield (
                f"a {first} and a {second}",
                [{"class": first, "count": 1}, {"class": second, "count": 1}],
                [],
            )
    elif tag == "position":
        for relation, (first, second) in product(RELATIONS, permutations(SHAPES, 2)):
            # GenEval's order: the reference object first, then the subject that carries the relation to it
            include = [
                {"class": second, "count": 1},
                {"class": first, "count": 1, "position": [relation, 0]},
            ]
            yield f"a {first} {relation} a {second}", include, []
    else:
        for (first, second), (one, two) in product(permutations(SHAPES, 2), permutations(INKS, 2)):
            include = [
                {"class": first, "count": 1, "color": one},
                {"class": second, "count": 1, "color": two},
            ]
            yield f"{_article(one)} {one} {first} and {_article(two)} {two} {second}", include, []


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@lru_cache(maxsize=1)
def _geneval_splits() -> dict[str, tuple[Prompt, ...]]:
    splits: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    for tag in TAGS:
        texts = [
            (f"{opening} {words}", include, exclude) for opening in OPENINGS for words, include, exclude in _scenes(tag)
        ]
        random.Random(f"{SEED}/{tag}").shuffle(texts)
        small = min(PER_TAG["test"], len(texts) // 3), min(PER_TAG["validation"], len(texts) // 4)
        cuts = {
            "test": texts[: small[0]],
            "validation": texts[small[0] : sum(small)],
            "train": texts[sum(small) :],
        }
        for split, chosen in cuts.items():
            splits[split] += [_prompt(split, tag, i, *entry) for i, entry in enumerate(chosen)]
    return {name: tuple(prompts) for name, prompts in splits.items()}


def _prompt(split: str, tag: str, index: int, text: str, include: list[dict], exclude: list[dict]) -> Prompt:
    metadata = {"tag": tag, "include": include, "prompt": text} | ({"exclude": exclude} if exclude else {})
    return Prompt(f"toy-geneval/{split}/{tag}/{index:04d}", text, "geneval", metadata)


def geneval(split: str = "train") -> list[Prompt]:
    """Composition prompts of the six tags."""
    return list(_geneval_splits()[split])


def train_by_tag() -> dict[str, list[Prompt]]:
    """The training prompts keyed by tag, for a sampler that balances them."""
    return {tag: [p for p in geneval("train") if p.metadata["tag"] == tag] for tag in TAGS}


@lru_cache(maxsize=1)
def codes() -> dict[str, tuple[str, ...]]:
    """Three-letter codes of each split; no code is in two of them."""
    everything = ["".join(letters) for letters in product(GLYPHS, repeat=CODE_LENGTH)]
    random.Random(f"{SEED}/codes").shuffle(everything)
    splits, start = {}, 0
    for name, count in CODES.items():
        splits[name] = tuple(everything[start : start + count])
        start += count
    return splits


def ocr(split: str = "train") -> list[Prompt]:
    """Prompts with the text to write in double quotes."""
    return [
        Prompt(f"toy-ocr/{split}/{i:04d}", f'{SIGNS[i % len(SIGNS)]} "{code}"', "ocr", {"target": code})
        for i, code in enumerate(codes()[split])
    ]


def everything(split: str = "train") -> list[Prompt]:
    """Both tasks, for rewards that apply to any picture."""
    return geneval(split) + ocr(split)
