"""T2I-CompBench's spatial rules, 2D and 3D, over detections, most confident first.

Source: Huang et al. 2023, arXiv 2307.06350, its ++ version, and the official scripts, quirks included. Boxes are
``(x1, y1, x2, y2)`` with y down, in UniDet's frame (``frame_size``), to which the pixel thresholds apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from flowopd_cli.rewards.compbench.phrases import Token
from flowopd_cli.rewards.geneval.rules import Box, Detection

RELATIONS_2D = (
    *("on side of", "next to", "near", "on the left of", "on the right of"),
    *("on the bottom of", "on the top of", "on top of"),
)
RELATIONS_3D = ("in front of", "behind", "hidden")
BESIDE = ("next to", "on side of", "near")
COMPLEX_RELATIONS = ("on top of", "on bottom of", "on the left", "on the right", *BESIDE)
PEOPLE = ("girl", "boy", "man", "woman")
SHORT_SIDE, LONG_SIDE = 479, 480
NEAR = 150
OVERLAP_2D, OVERLAP_3D = 0.1, 0.5
CUT_OFF = 0.5


class Pair(NamedTuple):
    """The two objects that a prompt relates; ``None`` where it names none."""

    first: str | None
    second: str | None


def frame_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture in the detector's frame: 479 on the short side, at most 480 on the long one."""
    short, long = min(width, height), max(width, height)
    new_short, new_long = SHORT_SIDE, int(SHORT_SIDE * long / short)
    if new_long > LONG_SIDE:
        new_short, new_long = int(LONG_SIDE * new_short / new_long), LONG_SIDE
    return (new_short, new_long) if width <= height else (new_long, new_short)


def relation_2d(prompt: str) -> str | None:
    """The first relation of the official list that occurs in the prompt, as a substring ("near" is in "nearby")."""
    return next((relation for relation in RELATIONS_2D if relation in prompt), None)


def relation_3d(prompt: str) -> str | None:
    """``in front of``, ``behind`` or ``hidden``, whichever of this order occurs in the prompt."""
    return next((relation for relation in RELATIONS_3D if relation in prompt), None)


def outer_nouns(tokens: Sequence[Token]) -> Pair:
    """The first and the last noun of a simple prompt, people of all kinds as ``person``."""
    nouns = [token.text for token in tokens if token.pos == "NOUN"]
    return _pair(nouns[0], nouns[-1]) if nouns else Pair(None, None)


def related_nouns(tokens: Sequence[Token]) -> Pair:
    """The nouns around the relation of a complex prompt: the nearest before it, the first after it.

    A proper noun counts before it, and after it only when no common noun follows. A prompt without a relation, or with
    two, gives ``(None, None)``, which scores 0.
    """
    nouns: list[str] = []
    for start in range(len(tokens)):
        sizes = [size for size in (3, 2, 1) if _text(tokens[start : start + size]) in COMPLEX_RELATIONS]
        if not sizes:
            continue
        nouns += [token.text for token in reversed(tokens[:start]) if token.pos in ("NOUN", "PROPN")][:1]
        rest = tokens[start + sizes[0] :]
        common = [token.text for token in rest if token.pos == "NOUN"]
        proper = [a.text for a, b in pairwise(rest) if a.pos == "PROPN" and b.pos != "PROPN"]
        nouns += (common or proper)[:1]
    return _pair(*nouns) if len(nouns) == 2 else Pair(None, None)


def position_2d(relation: str | None, a: Box, b: Box) -> float:
    """How well ``a`` stands in ``relation`` to ``b``, in [0, 1].

    Beside: 1 when the centres are less than 150 pixels apart on either axis, else 150 over the larger distance. Left,
    right, top, bottom: the centre offset must point that way and be strictly larger on that axis; then 1, or 0.1/IoU
    when the boxes overlap by an IoU of 0.1 or more. Any other relation ("on top of" too) is 0.
    """
    dx, dy = (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2, (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
    if relation in BESIDE:
        return 1.0 if abs(dx) < NEAR or abs(dy) < NEAR else NEAR / max(abs(dx), abs(dy))
    along, across = {
        "on the left of": (dx, dy),
        "on the right of": (-dx, dy),
        "on the top of": (dy, dx),
        "on the bottom of": (-dy, dx),
    }.get(str(relation), (0.0, 0.0))
    if along <= 0 or along <= abs(across):
        return 0.0
    overlap = plain_iou(a, b)
    return 1.0 if overlap < OVERLAP_2D else OVERLAP_2D / overlap


def position_3d(relation: str | None, a: Box, b: Box, depth: Float[Tensor, "H W"]) -> float:
    """How well ``a`` stands in a relation of depth to ``b``; relations of the plane have their own rule.

    ``depth`` is larger for what is nearer. In front: the mean depth of ``a``'s box exceeds that of ``b``'s; behind and
    hidden: it is below. Then 1 for an IoU above 0.5 and IoU/0.5 for one below; exactly 0.5 scores 0. As in the official
    script, boxes are cut out of the map with its axes swapped, x along the rows.
    """
    if relation not in RELATIONS_3D:
        return position_2d(relation, a, b)
    difference = float(_crop(depth, a).mean() - _crop(depth, b).mean())
    ordered = difference > 0 if relation == "in front of" else difference < 0
    overlap = plain_iou(a, b)
    if not ordered or overlap == OVERLAP_3D:
        return 0.0
    return min(overlap / OVERLAP_3D, 1.0)


def score_2d(relation: str | None, pair: Pair, detections: Sequence[Detection]) -> float:
    """A quarter of each object's confidence plus half the position's score; 0 whenever that is below one half.

    A label must equal the object's name; of several instances the first is taken, for both objects if they are one.
    """
    rows = [next((i for i, d in enumerate(detections) if d.label == name), None) for name in pair]
    score = _score(detections, rows, partial(position_2d, relation))
    return 0.0 if score < CUT_OFF else score


def score_3d(relation: str | None, pair: Pair, detections: Sequence[Detection], depth: Float[Tensor, "H W"]) -> float:
    """As ``score_2d`` but without the cut-off, and a label matches when it contains the name ("car" in "carrot").

    Until both objects are found, a later instance of one replaces the earlier one; an object that is alone takes its
    first instance.
    """
    matches = [[name is not None and name in d.label for d in detections] for name in pair]
    both = all(any(row) for row in matches)
    rows: list[int | None] = [None, None]
    for i in range(len(detections)):
        for k in (0, 1):
            if matches[k][i] and (both or rows[k] is None):
                rows[k] = i
        if None not in rows:
            break
    return _score(detections, rows, partial(position_3d, relation, depth=depth))


def plain_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes as areas of the plane (no added pixel); 0 when both are empty."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def _score(detections: Sequence[Detection], rows: Sequence[int | None], position: Callable[[Box, Box], float]) -> float:
    """A quarter of each object's confidence, and half the score of their position if both were found."""
    score = sum((0.25 * detections[row].score for row in rows if row is not None), 0.0)
    boxes = [detections[row].box for row in rows if row is not None]
    return score + position(*boxes) / 2 if len(boxes) == 2 else score


def _crop(depth: Float[Tensor, "H W"], box: Box) -> Float[Tensor, "h w"]:
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return depth[x1:x2, y1:y2]


def _pair(*names: str) -> Pair:
    return Pair(*("person" if name in PEOPLE else name for name in names))


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text + " " * token.space for token in tokens).rstrip(" ")
