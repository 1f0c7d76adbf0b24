"""Boxes and regions in plain torch, as detectron2 computes them: decoding, suppression, pooling.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the network's input. Sources: Ren et al. 2015, arXiv 1506.01497; He et al.
2017, arXiv 1703.06870 (ROIAlign, here with half-pixel centres and as many samples as a bin has cells).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Boxes = Float[Tensor, "*N 4"]
LARGEST_STEP = math.log(1000 / 16)  # of a side's logarithm, so that exp stays finite
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
CHUNK = 64  # regions pooled at once


def decode(steps: Float[Tensor, "*N 4"], boxes: Boxes, weights: Sequence[float]) -> Boxes:
    """``boxes`` moved by ``steps``, of the centre in sides and of the sides' logarithms, over ``weights``."""
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * sides
    steps = steps / steps.new_tensor(weights)
    centre = steps[..., :2] * sides + centre
    half = 0.5 * (steps[..., 2:].clamp(max=LARGEST_STEP).exp() * sides)
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """The boxes cut off at the borders of a picture of ``size`` (height, width)."""
    limits = boxes.new_tensor([size[1], size[0]] * 2)
    return boxes.clamp(min=0).minimum(limits)


def anchors(rows: int, columns: int, stride: int, device: torch.device) -> Float[Tensor, "A 4"]:
    """Nine anchors at every cell of a map: three sizes, an octave's thirds from four strides on, and three shapes."""
    corners = []
    for size in (4 * stride * 2 ** (third / 3) for third in range(3)):
        for ratio in (0.5, 1.0, 2.0):  # height over width
            width = math.sqrt(size**2 / ratio)
            corners.append([-width / 2, -ratio * width / 2, width / 2, ratio * width / 2])
    y, x = (torch.arange(0, count * stride, stride, dtype=torch.float32, device=device) for count in (rows, columns))
    y, x = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
    return (torch.stack([x, y, x, y], dim=1)[:, None] + torch.tensor(corners, device=device)).flatten(0, 1)


def suppress(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int[Tensor, " N"], most: float
) -> Tensor:
    """Indices of the boxes that survive, best first: of a group's boxes, none overlaps a better one by an IoU above
    ``most``.
    """
    order = scores.argsort(descending=True, stable=True)
    edges, kinds = boxes[order].cpu().numpy(), groups[order].cpu().numpy()
    areas = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    alive = np.ones(len(edges), dtype=bool)
    for kind in np.unique(kinds):
        rest = np.flatnonzero(kinds == kind)
        while len(rest) > 1:
            first, rest = rest[0], rest[1:]
            corner = np.minimum(edges[first, 2:], edges[rest, 2:]) - np.maximum(edges[first, :2], edges[rest, :2])
            both = np.prod(corner.clip(min=0), axis=1)
            with np.errstate(invalid="ignore"):  # two empty boxes do not overlap
                heavy = both / (areas[first] + areas[rest] - both) > most
            alive[rest[heavy]] = False
            rest = rest[~heavy]
    return order[torch.from_numpy(np.flatnonzero(alive)).to(order.device)]


def pool(
    maps: Sequence[Float[Tensor, "C h w"]], strides: Sequence[int], boxes: Float[Tensor, "R 4"], bins: int
) -> Float[Tensor, "R C bins bins"]:
    """Means of bilinear samples in ``bins`` x ``bins`` parts of every box, from the map that fits its size.

    A box of 224 pixels is read from the map of stride 16, one of twice the side from the next coarser map.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    level = (CANONICAL_LEVEL + (sides / CANONICAL_SIDE + 1e-8).log2()).floor()
    level = level.clamp(math.log2(strides[0]), math.log2(strides[-1]))
    pooled = maps[0].new_zeros(len(boxes), maps[0].shape[0], bins, bins)
    for features, stride in zip(maps, strides, strict=True):
        fitting = (level == math.log2(stride)).nonzero()[:, 0]
        for rows in fitting.split(CHUNK) if len(fitting) else ():
            edges = boxes[rows] / stride - 0.5
            x, y = (_axis(edges[:, i], edges[:, i + 2], features.shape[2 - i], bins) for i in (0, 1))
            # The samples form a grid, so that their mean is a product of two matrices.
            pooled[rows] = torch.einsum("rph,chw,rqw->rcpq", y, features, x)
    return pooled


def _axis(start: Float[Tensor, " R"], end: Float[Tensor, " R"], cells: int, bins: int) -> Float[Tensor, "R bins cells"]:
    """The weights of a map's cells in the mean of each bin, along one axis.

    A bin has as many evenly spaced samples as cells, rounded up; samples more than a cell outside of the map are zero.
    """
    width = ((end - start) / bins)[:, None, None]
    count = width.ceil()
    samples = torch.arange(max(1, int(count.max())), device=start.device)
    bin_start = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * width
    place = bin_start + (samples + 0.5) * (width / count.clamp(min=1))
    counted = (samples < count) & (place >= -1) & (place <= cells)
    place = place.clamp(0, cells - 1)
    low = place.floor()
    share = counted / count.clamp(min=1)
    weights = start.new_zeros(len(start), bins, cells)
    weights.scatter_add_(2, low.long(), (low + 1 - place) * share)
    return weights.scatter_add_(2, (low.long() + 1).clamp(max=cells - 1), (place - low) * share)
