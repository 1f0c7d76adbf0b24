"""Pixels as mixtures of paper and one ink."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.toy.draw import HATCH_DEPTH, INKS

COLORS = tuple(INKS)
HATCH_FULL = 0.65  # the least hatch of a print of full quality
SOLID = 0.3  # coverage of both neighbours from which a row between them says something about the hatch


class InkReading(NamedTuple):
    """For every pixel, the index of the nearest ink, its coverage in [0, 1], and the distance from that mixture."""

    ink: Int[Tensor, "B H W"]
    coverage: Float[Tensor, "B H W"]
    residual: Float[Tensor, "B H W"]


def border_paper(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 1 1"]:
    """The color of the paper in each picture: per channel, the upper quartile of its border pixels."""
    edge = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=-1)
    return edge.float().quantile(0.75, dim=-1)[..., None, None]


def read_ink(images: Float[Tensor, "B 3 H W"], paper: Float[Tensor, "#B 3 1 1"]) -> InkReading:
    """Project each pixel on the seven segments from paper to ink and keep the nearest."""
    difference = (paper - images.float()).permute(0, 2, 3, 1).unsqueeze(-2)
    inks = paper.new_tensor(list(INKS.values())).view(1, 1, 1, -1, 3)
    direction = paper.permute(0, 2, 3, 1).unsqueeze(-2) - inks
    length = direction.norm(dim=-1)
    coverage = (difference * direction).sum(-1) / length.square()
    clamped = coverage.clamp(0, 1)
    residual = (difference - clamped.unsqueeze(-1) * direction).norm(dim=-1)
    best = residual.argmin(dim=-1, keepdim=True)
    return InkReading(best.squeeze(-1), clamped.gather(-1, best).squeeze(-1), residual.gather(-1, best).squeeze(-1))


def stretched(coverage: Float[Tensor, "*B"], zero: float, full: float) -> Float[Tensor, "*B"]:
    """What is seen of ink by a device that sees none below ``zero`` and all from ``full``."""
    return ((coverage - zero) / (full - zero)).clamp(0, 1)


def hatch(coverage: Float[Tensor, "B H W"]) -> Float[Tensor, " B"]:
    """The mean hatch of the inked areas of each picture, as `draw.render` defines it; 0 without ink."""
    above, row, below = coverage[:, 0:-2:2], coverage[:, 1:-1:2], coverage[:, 2::2]
    ink = torch.minimum(above, below)
    weight = (ink - SOLID).clamp(min=0)
    lack = (1 - row / ink.clamp(min=SOLID)).clamp(min=0)
    return (weight * lack).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1e-6) / HATCH_DEPTH
