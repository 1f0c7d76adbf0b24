"""GenEval: the official verdict and the training score, over any detector.

The rules are those of ``evaluate_images.py`` (Ghosh et al. 2023, arXiv 2310.11513), comparisons in float32 included;
the training score is the partial credit of Flow-GRPO (arXiv 2505.05470) without its stray point for a failed position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.prompts.clauses import RELATIONS

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SCORES = ("training", "official", "strict")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object: class name, ``(x1, y1, x2, y2)`` in pixels, confidence, and its color where one was classified."""

    label: str
    box: Box
    score: float
    color: str | None = None


class Detector(ABC):
    """Finds objects. ``name`` is part of every report, because scores of two detectors are not comparable.

    ``weights`` identifies its weights; ``official`` says whether it is GenEval's own detector.
    """

    name: str
    weights: Mapping[str, str] = {}
    official: bool = False

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Raise ``PromptError`` if the detector can never satisfy a prompt."""

    @abstractmethod
    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
    ) -> Sequence[Sequence[Detection] | None]:
        """All detections of each picture, before any threshold; ``None`` for a picture it cannot process."""


@dataclass(frozen=True)
class GenEvalOptions:
    """The script's options with its defaults; ``max_overlap`` 1 switches suppression off."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


class Verdict(NamedTuple):
    """Whether a picture shows its prompt; ``reason`` has a line per failed clause."""

    correct: bool
    reason: str


class TrainingScore(NamedTuple):
    """Mean partial credit (1 is perfect; surplus objects can make it negative), and whether every clause holds."""

    score: float
    strict: bool


Objects = dict[str, list[Detection]]
DEFAULTS = GenEvalOptions()


def keep(detections: Sequence[Detection], tag: str, options: GenEvalOptions = DEFAULTS) -> Objects:
    """Detections by class: confident enough, best first (of equal scores the later one), without heavy overlaps."""
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    objects: Objects = {}
    for label in dict.fromkeys(d.label for d in detections):
        candidates = [d for d in detections if d.label == label]
        order = np.argsort(np.array([d.score for d in candidates], dtype=np.float32), kind="stable")[::-1]
        queue = [candidates[i] for i in order if np.float32(candidates[i].score) > threshold][: options.max_objects]
        while queue:
            best = queue.pop(0)
            objects.setdefault(label, []).append(best)
            if options.max_overlap < 1:
                queue = [d for d in queue if iou(best.box, d.box) < options.max_overlap]
    return objects


def iou(a: Box, b: Box) -> float:
    """Intersection over union with both border pixels counted (the script's ``+ 1``)."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0.0) * max(y2 - y1 + 1, 0.0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - both
    return both / union if union else 0.0


def relative_position(a: Box, b: Box, margin: float = DEFAULTS.position_threshold) -> set[str]:
    """How ``a`` lies from ``b``: none, one or two of left of, right of, above, below.

    The centre offset is shrunk by ``margin`` times the summed sizes on each axis, and divided by its unshrunk length;
    an axis counts beyond one half.
    """
    one, two = np.array(a, dtype=np.float32).reshape(2, 2), np.array(b, dtype=np.float32).reshape(2, 2)
    offset = one.mean(axis=0) - two.mean(axis=0)
    sizes = np.abs(np.diff(one, axis=0))[0] + np.abs(np.diff(two, axis=0))[0]
    revised = np.maximum(np.abs(offset) - margin * sizes, 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    x, y = revised / np.linalg.norm(offset)
    matches = zip(RELATIONS, (x < -0.5, x > 0.5, y < -0.5, y > 0.5), strict=True)
    return {relation for relation, holds in matches if holds}


def verdict(metadata: Mapping[str, Any], objects: Objects, options: GenEvalOptions = DEFAULTS) -> Verdict:
    """The official rule: every include clause holds for its most confident objects, and no exclude clause does."""
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []
    for clause in metadata.get("include", ()):
        matches = objects.get(clause["class"], [])[: clause["count"]]
        reason = _clause_failure(clause, matches, matched, options)
        reasons += [] if reason is None else [reason]
        matched.append(matches if reason is None else None)
    for clause in metadata.get("exclude", ()):
        number = len(objects.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return Verdict(not reasons, "\n".join(reasons))


def _clause_failure(
    clause: Mapping[str, Any],
    matches: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    options: GenEvalOptions,
) -> str | None:
    """Why a clause fails, in the script's words."""
    name, count = clause["class"], clause["count"]
    if len(matches) < count:
        return f"expected {name}>={count}, found {len(matches)}"
    if "color" in clause:
        expected, colors = clause["color"], [d.color for d in matches]
        if colors.count(expected) < count:
            others = [c for c in dict.fromkeys([*COLORS, *map(str, colors)]) if c in colors]
            listed = ", ".join(f"{colors.count(color)} {color}" for color in others)
            return f"expected {expected} {name}>={count}, found {colors.count(expected)} {expected}; and {listed}"
    if "position" in clause:
        relation, target = clause["position"]
        targets = matched[target]
        if targets is None:
            return f"no target for {name} to be {relation}"
        relations = _broken_relation(relation, matches, targets, options)
        if relations is not None:
            return f"expected {name} {relation} target, found {' and '.join(sorted(relations))} target"
    return None


def _broken_relation(
    relation: str, matches: Sequence[Detection], targets: Sequence[Detection], options: GenEvalOptions
) -> set[str] | None:
    """The relations of the first pair without the expected one; ``None`` when every pair has it."""
    pairs = (relative_position(m.box, t.box, options.position_threshold) for m in matches for t in targets)
    return next((relations for relations in pairs if relation not in relations), None)


def training_score(
    metadata: Mapping[str, Any], objects: Objects, options: GenEvalOptions = DEFAULTS, *, stray_point: bool = False
) -> TrainingScore:
    """Flow-GRPO's partial credit: a term for each count, color and position, averaged.

    A count earns ``1 - |expected - detected| / expected`` over all objects kept. Color and position earn nothing while
    the count is wrong. ``stray_point`` adds the 1 that Flow-GRPO's server appends after a failed position.
    """
    terms: list[float] = []
    matched: list[list[Detection] | None] = []
    for clause in metadata.get("include", ()):
        matches, expected = objects.get(clause["class"], []), clause["count"]
        terms.append(1 - abs(expected - len(matches)) / expected)
        good = len(matches) == expected
        if not good:
            terms += [0.0] if "color" in clause or "position" in clause else []
        if good and "color" in clause:
            right = sum(d.color == clause["color"] for d in matches)
            terms.append(1 - abs(expected - right) / expected)
            good = right == expected
        if good and "position" in clause:
            relation, target = clause["position"]
            targets = matched[target]
            good = targets is not None and _broken_relation(relation, matches, targets, options) is None
            terms.append(float(good))
            terms += [1.0] if stray_point and not good and targets is not None else []
        matched.append(matches if good else None)
    strict = all(m is not None for m in matched)
    return TrainingScore(sum(terms) / len(terms) if terms else 0.0, strict)
