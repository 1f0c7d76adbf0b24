"""Conversions of images between files, PIL, bytes and tensors in [0, 1]."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line

_END = b"\0\0\0\0IEND\xaeB`\x82"  # a PNG's last chunk (W3C PNG specification, 11.2.5)
FORMATS = ("PNG", "JPEG", "WEBP")  # what PIL decodes by itself; others start programs or hold several pictures
MOST_PIXELS = 64 << 20


def read_picture(path: Path) -> Image.Image:
    """The RGB pixels of a PNG, JPEG or WebP file. Its size is checked before decoding, because a few kilobytes can
    unpack to gigabytes.

    Raises :class:`ArtifactError`: the file is missing, of another format, damaged, or has more than 64 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels, at most {MOST_PIXELS} are read")
                return picture.convert("RGB")
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # any that PIL's decoders raise over hostile bytes
        reason = "no PNG, JPEG or WebP" if isinstance(error, UnidentifiedImageError) else one_line(error)[:200]
        raise ArtifactError(f"{path}: cannot be read as a picture ({reason})") from error


def to_arrays(images: Float[Tensor, "B 3 H W"]) -> NDArray[np.uint8]:
    """``(B, H, W, 3)`` RGB bytes, rounded."""
    scaled = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """One RGB image each."""
    return [Image.fromarray(array) for array in to_arrays(images)]


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """RGB images of one size as a tensor in [0, 1]."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def is_whole_png(path: Path) -> bool:
    """Whether the file exists and ends with a PNG's last chunk."""
    try:
        with path.open("rb") as handle:
            handle.seek(-len(_END), os.SEEK_END)
            return handle.read() == _END
    except OSError:
        return False
