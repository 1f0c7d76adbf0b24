"""Conversions of images between PIL, bytes and tensors in [0, 1]."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowopd_cli.system.pictures import to_rgb


def to_arrays(images: Float[Tensor, "B 3 H W"]) -> NDArray[np.uint8]:
    """``(B, H, W, 3)`` RGB bytes, rounded."""
    scaled = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """One RGB image each."""
    return [Image.fromarray(array) for array in to_arrays(images)]


def png_url(image: Image.Image) -> str:
    """The image as a PNG in a data URL, as requests to vision-language models carry it."""
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """Images of one size, of any mode, as a tensor in [0, 1]."""
    arrays = np.stack([np.asarray(image if image.mode == "RGB" else to_rgb(image)) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
