"""A generator of training prompts in GenEval's grammar; the evaluation prompts themselves are held out.

Tags have the weights of Flow-GRPO's generator (arXiv 2505.05470); ``single_object`` has no training prompts, because
the evaluation set holds all of them.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from flowopd_cli.prompts.clauses import GENEVAL_CLASSES

WEIGHTS: Mapping[str, int] = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COUNTS: Mapping[int, str] = {2: "two", 3: "three", 4: "four"}
AXES: Mapping[str, str] = {"left of": "x", "right of": "x", "above": "y", "below": "y"}
WORDINGS = ("geneval", "english")
PAINTABLE = tuple(name for name in GENEVAL_CLASSES if name != "person")
PAIRED = ("skis", "scissors")
IRREGULAR: Mapping[str, str] = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "broccoli": "heads of broccoli",
}
HELD_OUT_FILE = Path(__file__).with_name("data") / "geneval_held_out.txt"
Row = dict[str, Any]
T = TypeVar("T")


def make(count: int, seed: int, *, wording: str = "geneval") -> Iterator[Row]:
    """``count`` rows of GenEval's metadata, each a function of the seed and its number; they may repeat.

    ``wording`` is that of the evaluation prompts (``benchs``, ``knifes``, ``a skis``) or correct English.
    """
    for number in range(count):
        rng = random.Random(f"geneval/{seed}/{number}")
        tag = pick(rng, [tag for tag, weight in WEIGHTS.items() for _ in range(weight)])
        row = _scene(tag, rng)
        while held_out(row):
            row = _scene(tag, rng)
        yield {**row, "prompt": describe(row, wording), "task": "geneval", "id": f"geneval-{seed}/{number:05d}"}


def held_out(row: Mapping[str, Any]) -> bool:
    """Whether a scene is an evaluation prompt, or one with its two objects, colors or sides exchanged."""
    return row["tag"] == "single_object" or _digest(_equivalence_key(row)) in _held_out_digests()


def describe(row: Mapping[str, Any], wording: str = "geneval") -> str:
    """The prompt of a scene."""
    include, english = row["include"], wording == "english"
    if row["tag"] == "counting":
        name, count = include[0]["class"], include[0]["count"]
        return f"a photo of {COUNTS[count]} {_plural(name, english)}"
    phrases = [_phrase(clause["class"], clause.get("color"), english) for clause in include]
    if row["tag"] == "position":
        return f"a photo of {phrases[1]} {include[1]['position'][0]} {phrases[0]}"
    return f"a photo of {' and '.join(phrases)}"


def _scene(tag: str, rng: random.Random) -> Row:
    """A scene without its prompt, its keys in the order of the evaluation file."""
    if tag == "counting":
        name, count = pick(rng, GENEVAL_CLASSES), pick(rng, tuple(COUNTS))
        include, more = [{"class": name, "count": count}], [{"class": name, "count": count + 1}]
        return {"tag": tag, "include": include, "exclude": more}
    names = _pair(rng, GENEVAL_CLASSES if tag in ("two_object", "position") else PAINTABLE)
    clauses: list[Row] = [{"class": name, "count": 1} for name in names]
    if tag == "colors":
        clauses = [{**clauses[0], "color": pick(rng, COLORS)}]
    elif tag == "color_attr":
        clauses = [{**clause, "color": color} for clause, color in zip(clauses, _pair(rng, COLORS), strict=True)]
    elif tag == "position":
        # the object that the other stands by comes first, as in the evaluation file
        clauses[1]["position"] = [pick(rng, tuple(AXES)), 0]
    return {"tag": tag, "include": clauses}


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """A random item, drawn by ``random()``, the only method with the same result in every Python version."""
    return items[int(rng.random() * len(items))]


def _pair(rng: random.Random, items: Sequence[T]) -> tuple[T, T]:
    first = pick(rng, items)
    return first, pick(rng, [item for item in items if item != first])


def _phrase(name: str, color: str | None, english: bool) -> str:
    words = f"{color} {name}" if color else name
    if english and name in PAIRED:
        return f"a pair of {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(name: str, english: bool) -> str:
    if english and name in PAIRED:
        return f"pairs of {name}"
    if english and name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("s", "ch", "sh") if english else "s") else "s")


def _equivalence_key(row: Mapping[str, Any]) -> str:
    """A text that is equal for scenes that differ only by exchanged objects, colors or sides."""
    include = row["include"]
    parts = [row["tag"], *sorted(clause["class"] for clause in include)]
    if row["tag"] == "counting":
        parts.append(str(include[0]["count"]))
    parts += sorted(clause["color"] for clause in include if "color" in clause)
    parts += [AXES[clause["position"][0]] for clause in include if "position" in clause]
    return "|".join(parts)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:6]).decode()


@cache
def _held_out_digests() -> frozenset[str]:
    """One digest per equivalence key of the evaluation prompts but ``single_object``, which has every class."""
    return frozenset(HELD_OUT_FILE.read_text().split())
