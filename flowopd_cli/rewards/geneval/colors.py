"""GenEval's color of an object: CLIP over the object, cut out of the picture, on grey.

Source: ``evaluate_images.py`` of Ghosh et al. 2023 (arXiv 2310.11513), with OpenAI's CLIP ViT-L/14.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowopd_cli.rewards.geneval.rules import COLORS, Box
from flowopd_cli.rewards.preference.clip import ClipEncoder
from flowopd_cli.rewards.preference.scoring import centre_square

GREY = 0x99
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


class ColorClassifier:
    """Names the color of cut-out objects of a class, by the nearest of ten averaged texts."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder
        self._texts: dict[str, Float[Tensor, "colors D"]] = {}

    def __call__(self, cutouts: Sequence[Image.Image], labels: Sequence[str]) -> list[str]:
        """The color of each cut-out of an object with the given class."""
        if not cutouts:
            return []
        squares = [centre_square(cutout, self._encoder.image_size) for cutout in cutouts]
        vectors = self._encoder.images(squares)
        nearest = [int((self._directions(label) @ v).argmax()) for v, label in zip(vectors, labels, strict=True)]
        return [COLORS[index] for index in nearest]

    def _directions(self, label: str) -> Float[Tensor, "colors D"]:
        """A unit vector for each color: the mean of its templates' unit vectors, normalized again."""
        if label not in self._texts:
            texts = [t.format(color=color, label=label) for color in COLORS for t in TEMPLATES]
            vectors = self._encoder.texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._texts[label] = F.normalize(vectors.mean(dim=1), dim=-1)
        return self._texts[label]


def cut_out(picture: UInt8[NDArray, "H W 3"], mask: Bool[Tensor, "H W"], box: Box) -> Image.Image:
    """The picture inside the box, with everything outside the mask grey."""
    masked = np.where(mask.cpu().numpy()[..., None], picture, np.uint8(GREY))
    left, top, right, bottom = (round(edge) for edge in box)
    return Image.fromarray(masked[top:bottom, left:right])
