"""Pictures between forms: tensors in [0, 1], bytes, PIL."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def to_arrays(images: Float[Tensor, "B 3 H W"]) -> NDArray[np.uint8]:
    """``(B, H, W, 3)`` RGB bytes, rounded."""
    scaled = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """One RGB picture each."""
    return [Image.fromarray(array) for array in to_arrays(images)]
