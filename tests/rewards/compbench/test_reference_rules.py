"""The spatial and counting rules against transcriptions of the official scripts, on random boxes.

The transcriptions follow ``2D_spatial_eval.py``, ``3D_spatial_eval.py`` and ``numeracy_eval.py`` of T2I-CompBench step
by step, in the order of their lists and branches.
"""

import random

import pytest
import torch

from flowopd_cli.rewards.compbench.numeracy import RENAMED, Quantity, score_numeracy
from flowopd_cli.rewards.compbench.spatial import (
    RELATIONS_2D,
    RELATIONS_3D,
    Pair,
    position_2d,
    position_3d,
    score_2d,
    score_3d,
)
from flowopd_cli.rewards.geneval.rules import Detection

CASES = 2000
NAMES = ("cat", "dog", "car", "carrot", "person", "cart, car", "table, desk", "desk", "boat")
SIDE = 60  # of the maps of depth; boxes lie in a frame of 8 times the side


def reference_iou(a, b):
    x = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    y = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    one, two = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return x * y / (one + two - x * y)


def reference_2d(relation, a, b):
    dx, dy = (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2, (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
    overlap = reference_iou(a, b)
    if relation in ("next to", "on side of", "near"):
        if abs(dx) < 150 or abs(dy) < 150:
            return 1
        return 150 / max(abs(dx), abs(dy))
    if relation == "on the right of":
        right_way, wide = dx < 0, abs(dx) > abs(dy)
    elif relation == "on the left of":
        right_way, wide = dx > 0, abs(dx) > abs(dy)
    elif relation == "on the bottom of":
        right_way, wide = dy < 0, abs(dy) > abs(dx)
    elif relation == "on the top of":
        right_way, wide = dy > 0, abs(dy) > abs(dx)
    else:
        return 0
    if right_way and wide and overlap < 0.1:
        return 1
    if right_way and wide and overlap >= 0.1:
        return 0.1 / overlap
    return 0


def reference_3d(relation, a, b, depth):
    if relation not in ("in front of", "behind", "hidden"):
        return reference_2d(relation, a, b)
    means = [depth[int(box[0]) : int(box[2]), int(box[1]) : int(box[3])].mean() for box in (a, b)]
    difference, overlap = means[0] - means[1], reference_iou(a, b)
    ordered = difference > 0 if relation == "in front of" else difference < 0
    if overlap > 0.5:
        return 1 if ordered else 0
    if overlap < 0.5 and overlap > 0:
        return overlap / 0.5 if ordered else 0
    return 0


def reference_score_2d(relation, first, second, rows):
    labels = [label for label, _, _ in rows]
    if first in labels and second in labels:
        one, two = labels.index(first), labels.index(second)
        score = 0.25 * rows[one][1] + 0.25 * rows[two][1]
        score += reference_2d(relation, rows[one][2], rows[two][2]) / 2
    elif first in labels:
        score = 0.25 * rows[labels.index(first)][1]
    elif second in labels:
        score = 0.25 * rows[labels.index(second)][1]
    else:
        score = 0
    return 0 if score < 0.5 else score


def reference_score_3d(relation, first, second, rows, depth):
    labels = [label for label, _, _ in rows]
    joined = " ".join(labels)
    one = two = None
    if first in joined and second in joined:
        for i, label in enumerate(labels):
            if first in label:
                one = i
            if second in label:
                two = i
            if one is not None and two is not None:
                break
        score = 0.25 * rows[one][1] + 0.25 * rows[two][1]
        return score + reference_3d(relation, rows[one][2], rows[two][2], depth) / 2
    for name in (first, second):
        if name in joined:
            return 0.25 * next(score for label, score, _ in rows if name in label)
    return 0


def reference_same(a, b):
    x = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    y = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    one, two = (a[2] - a[0] + 1) * (a[3] - a[1] + 1), (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return x * y / (one + two - x * y) > 0.9 or x * y / one > 0.9 or x * y / two > 0.9


def reference_numeracy(names, counts, rows):
    labels, boxes = [], []
    for label, _, box in rows:
        if not any(reference_same(box, boxes[j]) and label == labels[j] for j in range(len(labels))):
            labels.append(label)
            boxes.append(box)
    score = 0
    for i, name in enumerate(names):
        name = RENAMED.get(name, name)
        if name not in labels:
            labels = [name if name in label else label for label in labels]
        if name in labels:
            score += 0.5 / len(names)
            if labels.count(name) == counts[i]:
                score += 0.5 / len(names)
    return score


def random_box(rng, near=None):
    """A box on a grid of 8 pixels, so that ties occur; close to ``near`` half of the time."""
    x, y = (rng.randrange(0, SIDE - 1) for _ in range(2))
    if near is not None and rng.random() < 0.5:
        return tuple(float(max(0, edge + 8 * rng.choice((-1, 0, 0, 1)))) for edge in near[:2]) + tuple(
            edge + 8 * rng.choice((1, 2, 2, 3)) for edge in near[2:]
        )
    width, height = (rng.randrange(1, SIDE - start) for start in (x, y))
    return tuple(8.0 * edge for edge in (x, y, x + width, y + height))


def random_rows(rng, names=NAMES):
    rows = []
    for _ in range(rng.randrange(0, 7)):
        near = rng.choice(rows)[2] if rows else None
        rows.append((rng.choice(names), round(rng.uniform(0.4, 1), 3), random_box(rng, near)))
    return sorted(rows, key=lambda row: -row[1])


def detections(rows):
    return [Detection(label, box, score) for label, score, box in rows]


@pytest.fixture(scope="module")
def maps():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 1, SIDE // 10, SIDE // 10, generator=generator)
    return torch.nn.functional.interpolate(noise, size=(8 * SIDE, 8 * SIDE))[:, 0]


def test_positions(maps):
    rng, counts = random.Random(0), {}
    for case in range(CASES):
        first = random_box(rng)
        second, relation = random_box(rng, first), rng.choice((*RELATIONS_2D, *RELATIONS_3D, None))
        depth = maps[case % len(maps)]
        expected = reference_3d(relation, first, second, depth)
        assert position_3d(relation, first, second, depth) == expected, (relation, first, second)
        if relation not in RELATIONS_3D:
            assert position_2d(relation, first, second) == expected, (relation, first, second)
        kind = "none" if expected == 0 else "all" if expected == 1 else "part"
        counts[kind] = counts.get(kind, 0) + 1
    assert all(counts[kind] > CASES / 50 for kind in ("none", "all", "part")), counts


def test_scores_of_pictures(maps):
    rng, positive = random.Random(1), [0, 0]
    for case in range(CASES):
        rows, pair = random_rows(rng, NAMES[:6]), Pair(*rng.choices(("cat", "dog", "car", "person", "hat"), k=2))
        relation, depth = rng.choice((*RELATIONS_2D, "near", "near", None)), maps[case % len(maps)]
        scores = [reference_score_2d(relation, *pair, rows)]
        assert score_2d(relation, pair, detections(rows)) == scores[0], (relation, pair, rows)
        relation = rng.choice((*RELATIONS_3D, None))
        scores.append(reference_score_3d(relation, *pair, rows, depth))
        assert score_3d(relation, pair, detections(rows), depth) == scores[1], (relation, pair, rows)
        positive = [count + (score > 0) for count, score in zip(positive, scores, strict=True)]
    assert min(positive) > CASES / 20


def test_counts():
    rng, values = random.Random(2), set()
    for _ in range(CASES):
        names = rng.choices(("cat", "dog", "car", "woman", "desk", "ship"), k=rng.randrange(1, 4))
        counts, rows = [rng.randrange(1, 4) for _ in names], random_rows(rng, NAMES[:5])
        things = [Quantity(RENAMED.get(name, name), count) for name, count in zip(names, counts, strict=True)]
        expected = reference_numeracy(names, counts, rows)
        assert score_numeracy(things, detections(rows)) == pytest.approx(expected, abs=1e-12), (names, counts, rows)
        values.add(round(expected, 3))
    assert len(values) > 6
