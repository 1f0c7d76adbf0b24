"""A detector by soft template overlap at every pixel, from which the best places apart from each other are taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.geneval.rules import Detection, Detector
from flowopd_cli.toy.draw import SHAPES, shape_mask
from flowopd_cli.toy.ink import COLORS, border_paper, read_ink, stretched

SIZES = (11, 12, 13)
WINDOW = 17
MAX_OBJECTS = 6
APART = 8.0
OVERLAP_ZERO, OVERLAP_FULL = 0.50, 0.78
INK_ZERO, INK_FULL = 0.15, 0.45  # coverage: the detector does not see the rows of a strong hatch


def templates() -> tuple[Float[Tensor, "K 1 W W"], Float[Tensor, "K 1 W W"], list[tuple[str, int]]]:
    """Shape masks in a common window, the boxes they are compared in, their kinds and sizes."""
    masks, boxes, names = [], [], []
    for kind in SHAPES:
        for size in SIZES:
            mask, box = torch.zeros(WINDOW, WINDOW), torch.zeros(WINDOW, WINDOW)
            start = WINDOW // 2 - size // 2
            mask[start : start + size, start : start + size] = torch.from_numpy(shape_mask(kind, size))
            box[start - 1 : start + size + 1, start - 1 : start + size + 1] = 1
            masks.append(mask)
            boxes.append(box)
            names.append((kind, size))
    return torch.stack(masks)[:, None], torch.stack(boxes)[:, None], names


class PixelDetector(Detector):
    """Finds the toy's shapes and their colors. Confidence is template overlap, stretched to [0, 1]."""

    name = "toy-pixels-2"

    def __init__(self) -> None:
        self.masks, self.boxes, self.names = templates()

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> list[list[Detection]]:
        """Detections of each picture, best first."""
        images = images.detach().float().cpu()
        reading = read_ink(images, border_paper(images))
        ink = stretched(reading.coverage, INK_ZERO, INK_FULL)[:, None]
        overlap = self._overlap(ink)
        detections: list[list[Detection]] = [[] for _ in images]
        height, width = overlap.shape[-2:]
        grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        for _ in range(MAX_OBJECTS):
            best, flat = overlap.flatten(1).max(dim=1)
            template, place = flat // (height * width), flat % (height * width)
            y, x = place // width, place % width
            for row in (best > OVERLAP_ZERO).nonzero().flatten().tolist():
                k, at = int(template[row]), (int(y[row]), int(x[row]))
                detections[row].append(self._detection(reading, ink, row, k, at, float(best[row])))
            near = (grid[0] - y[:, None, None]).square() + (grid[1] - x[:, None, None]).square() < APART**2
            overlap.masked_fill_(near[:, None], 0)
        return detections

    def _overlap(self, ink: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B K H W"]:
        """Soft intersection over union of each template with the ink around each place."""
        pad = WINDOW // 2
        both = F.conv2d(ink, self.masks, padding=pad)
        around = F.conv2d(ink, self.boxes, padding=pad)
        area = self.masks.sum(dim=(1, 2, 3)).view(1, -1, 1, 1)
        return both / (around + area - both)

    def _detection(self, reading, ink, row: int, k: int, at: tuple[int, int], overlap: float) -> Detection:
        kind, size = self.names[k]
        top, left = at[0] - size // 2, at[1] - size // 2
        rows = slice(max(top, 0), min(top + size, ink.shape[-2]))
        cols = slice(max(left, 0), min(left + size, ink.shape[-1]))
        offset = WINDOW // 2 - size // 2
        shape = self.masks[k, 0, offset : offset + size, offset : offset + size]
        shape = shape[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        votes = torch.zeros(len(COLORS))
        weight = shape * ink[row, 0, rows, cols]
        votes.index_add_(0, reading.ink[row, rows, cols].flatten(), weight.flatten())
        confidence = min(1.0, max(0.0, (overlap - OVERLAP_ZERO) / (OVERLAP_FULL - OVERLAP_ZERO)))
        box = (float(cols.start), float(rows.start), float(cols.stop), float(rows.stop))
        return Detection(label=kind, box=box, score=confidence, color=COLORS[int(votes.argmax())])
