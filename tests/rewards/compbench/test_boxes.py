"""Suppression and pooling against loops over single boxes and samples."""

import math
import random

import pytest
import torch

from flowopd_cli.rewards.compbench.boxes import anchors, clip, decode, pool, suppress
from flowopd_cli.rewards.compbench.spatial import plain_iou


def random_boxes(count, side, seed=0):
    """Boxes within a picture, and a few that are a line or a point."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * side
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[::50, 2] = boxes[::50, 0]
    boxes[::100, 3] = boxes[::100, 1]
    return boxes


def test_suppression_goes_through_a_groups_boxes_best_first():
    boxes, rng = random_boxes(1200, 100.0), random.Random(0)
    scores = torch.tensor([rng.randrange(200) / 200 for _ in boxes])  # with ties
    groups = torch.tensor([rng.randrange(8) for _ in boxes])
    rows, kinds, likely, survivors = boxes.tolist(), groups.tolist(), scores.tolist(), []
    for i in sorted(range(len(rows)), key=lambda row: -likely[row]):
        rivals = [j for j in survivors if kinds[j] == kinds[i]]
        if all(plain_iou(rows[i], rows[j]) <= 0.3 for j in rivals):
            survivors.append(i)
    assert 50 < len(survivors) < len(boxes) - 50
    assert suppress(boxes, scores, groups, 0.3).tolist() == survivors
    assert suppress(boxes[:0], scores[:0], groups[:0], 0.3).tolist() == []


def sample(features, y, x):
    """The value of a map at a point, by bilinear interpolation; zero more than a cell outside of it."""
    height, width = len(features), len(features[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    rows = [(1 - dx) * features[row][left] + dx * features[row][right] for row in (top, bottom)]
    return (1 - dy) * rows[0] + dy * rows[1]


def pooled_by_loops(maps, strides, box, bins):
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    level = min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 3), 5) - 3
    features, edges = maps[level], [edge / strides[level] - 0.5 for edge in box]
    height, width = (edges[3] - edges[1]) / bins, (edges[2] - edges[0]) / bins
    rows, columns = math.ceil(height), math.ceil(width)
    values = torch.zeros(bins, bins)
    for p in range(bins):
        for q in range(bins):
            points = [
                (edges[1] + p * height + (i + 0.5) * height / rows, edges[0] + q * width + (j + 0.5) * width / columns)
                for i in range(rows)
                for j in range(columns)
            ]
            values[p, q] = sum(sample(features, y, x) for y, x in points) / max(1, len(points))
    return values, level


def test_pooling_takes_the_mean_of_the_samples_of_each_part():
    boxes = random_boxes(40, 480.0, seed=1)
    boxes[:4] = torch.tensor([[-30.0, 2.0, 8.0, 60.0]]) * torch.linspace(0.2, 1, 4)[:, None]  # beyond the border
    boxes[4:6] = torch.tensor([[3.0, 1.0, 480.0, 470.0], [0.0, 0.0, 479.0, 460.0]])
    maps = [torch.randn(2, side, side, generator=torch.Generator().manual_seed(side)) for side in (60, 30, 15)]
    pooled, cells = pool(maps, (8, 16, 32), boxes, 2), [each.tolist() for each in maps]
    levels = set()
    for box, values in zip(boxes.tolist(), pooled, strict=True):
        for channel in (0, 1):
            expected, level = pooled_by_loops([each[channel] for each in cells], (8, 16, 32), box, 2)
            assert torch.allclose(values[channel], expected, atol=1e-4), box
            levels.add(level)
    assert levels == {0, 1, 2}


def test_steps_move_and_scale_boxes_within_the_picture():
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    steps = torch.tensor([[5.0, -2.5, 5 * math.log(2), 99.0]])
    moved = decode(steps, box, (10.0, 10.0, 5.0, 5.0))
    centre, height = (20 + 0.5 * 20, 40 - 0.25 * 40), 40 * 1000 / 16
    expected = (centre[0] - 20, centre[1] - height / 2, centre[0] + 20, centre[1] + height / 2)
    assert moved[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert clip(moved, (48, 32))[0].tolist() == pytest.approx((10, 0, 32, 48))


def test_anchors_lie_at_the_cells_in_three_sizes_and_shapes():
    cells = anchors(2, 3, 8, torch.device("cpu"))
    assert cells.shape == (2 * 3 * 9, 4)
    assert cells[1].tolist() == pytest.approx([-16, -16, 16, 16])
    areas = (cells[:, 2:] - cells[:, :2]).prod(dim=1)
    assert areas[:9].tolist() == pytest.approx([(32 * 2 ** (third / 3)) ** 2 for third in (0, 0, 0, 1, 1, 1, 2, 2, 2)])
    centres = (cells[::9, :2] + cells[::9, 2:]) / 2
    assert centres.tolist() == [[8.0 * x, 8.0 * y] for y in range(2) for x in range(3)]
