"""T2I-CompBench's numeracy rule over detections: are the counted things there, and as many as counted?

Source: T2I-CompBench++ (Huang et al. 2024) and its official script, quirks included (IoU with both border pixels, names
found inside other labels, a misspelt "telivision" that never matches).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

from flowopd_cli.rewards.compbench.phrases import Token
from flowopd_cli.rewards.geneval.rules import Box, Detection, iou

COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
SINGLE = ("a", "an", "one")
SAME = 0.9
# How the script renames an object before it looks for a label.
RENAMED = {
    **dict.fromkeys(("boy", "girl", "man", "woman"), "person"),
    **{"ship": "boat", "telivision": "tv", "goldfish": "fish", "painting": "picture"},
}
# The singular of every countable object of the benchmark.
_NAMES = """bottle cup cake bird knife microwave desk book helmet pillow bowl flag stool toy pen microphone bread fish
    camera candle paddle drum guitar tomato tent kite lemon strawberry suitcase pear printer duck hamburger deer egg
    ship chicken peach helicopter swan camel goldfish shrimp banana balloon giraffe frog horse man rabbit bicycle bee
    girl mouse painting lamp cow train vase pig sheep airplane woman phone boy plate computer couch turtle bag car
    backpack dog television butterfly cat person table sofa key refrigerator clock chair truck boat bear sink apple"""
SINGULARS = tuple(_NAMES.split())
IRREGULAR = {
    **{name: name for name in ("fish", "deer", "goldfish", "shrimp", "sheep")},
    **{"knife": "knives", "man": "men", "woman": "women", "mouse": "mice", "person": "people"},
    **{"tomato": "tomatoes", "peach": "peaches", "couch": "couches"},
    **{"strawberry": "strawberries", "butterfly": "butterflies"},
}
SINGULAR_OF = {IRREGULAR.get(name, f"{name}s"): name for name in SINGULARS}


class Quantity(NamedTuple):
    """A label to look for, and how many; ``None`` where the number could not be read."""

    label: str
    number: int | None


def quantities(tokens: Sequence[Token]) -> list[Quantity]:
    """Every number word (a, an, one to eight; lower case) with the known object that follows it."""
    names: list[str] = []
    counts: list[int] = []
    for number, name in pairwise(token.text for token in tokens):
        if number not in (*COUNTS, *SINGLE) or (name not in SINGULARS and name not in SINGULAR_OF):
            continue
        if number in SINGLE and name in SINGULARS:
            names.append(name)
            counts.append(1)
            continue
        names.append(SINGULAR_OF.get(name, name))
        if number in COUNTS:
            counts.append(COUNTS[number])
    pairs = zip_longest(names, counts)
    return [Quantity(RENAMED.get(name, name), count) for name, count in pairs if name is not None]


def duplicates(a: Box, b: Box) -> bool:
    """Whether two boxes are one object: IoU above 0.9, or more than 0.9 of either covered, border pixels counted."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return iou(a, b) > SAME or any(both / area > SAME for area in areas)


def distinct(detections: Sequence[Detection]) -> list[Detection]:
    """The detections without duplicates of an earlier one of the same label."""
    unique: list[Detection] = []
    for detection in detections:
        if not any(detection.label == other.label and duplicates(detection.box, other.box) for other in unique):
            unique.append(detection)
    return unique


def score_numeracy(things: Sequence[Quantity], detections: Sequence[Detection]) -> float:
    """Mean over the counted things: half a point for a detection, half for the right number of them.

    Where no label equals a name, every label that contains it is renamed to it, for the things after it too.
    """
    labels = [detection.label for detection in distinct(detections)]
    score = 0.0
    for thing in things:
        if thing.label not in labels:
            labels = [thing.label if thing.label in label else label for label in labels]
        count = labels.count(thing.label)
        score += 0.5 * (count > 0) + 0.5 * (count > 0 and count == thing.number)
    return score / len(things)
