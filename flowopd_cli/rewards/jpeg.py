"""``jpeg_compressibility``: minus the size of a picture's JPEG. The smoke reward of DDPO: no model, no download."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_pil

DIVISORS = {"ddpo": 1.0, "flow_grpo": 500.0}


class JpegReward(Reward):
    """``-kB / divisor``, a kilobyte being 1000 bytes: the simpler the picture, the nearer to 0. The prompt is ignored.

    ``variant`` is ``ddpo`` (divisor 1) or ``flow_grpo`` (500). ``scores`` has ``kilobytes``, where less is better.
    """

    info = RewardInfo(
        "jpeg_compressibility",
        "arXiv 2305.13301",
        -float("inf"),
        0.0,
        license="none (no weights)",
        note="sizes depend a little on the JPEG library that Pillow carries",
    )

    def __init__(self, quality: int = 95, variant: Literal["ddpo", "flow_grpo"] = "ddpo") -> None:
        """``quality`` is Pillow's, 95 in DDPO and Flow-GRPO.

        Raises :class:`RewardError`: a quality outside 1 to 95, or an unknown variant.
        """
        if not 1 <= quality <= 95:
            raise RewardError(f"jpeg_compressibility: quality {quality} is not in 1 to 95")
        if variant not in DIVISORS:
            raise RewardError(f"jpeg_compressibility: variant {variant!r} is not one of {', '.join(DIVISORS)}")
        self.quality, self.divisor = quality, DIVISORS[variant]

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Compress B pictures in memory; one that JPEG cannot hold (65500 pixels a side at most) is invalid."""
        kilobytes = torch.tensor([self._kilobytes(image) for image in to_pil(images)])
        valid = ~kilobytes.isnan()
        details = tuple({} if good else {"error": "JPEG cannot hold a picture of this size"} for good in valid.tolist())
        return RewardResult(-kilobytes / self.divisor, {"kilobytes": kilobytes}, valid, details)

    def _kilobytes(self, image: Image.Image) -> float:
        sink = io.BytesIO()
        try:
            image.save(sink, format="JPEG", quality=self.quality)
        except (OSError, ValueError):
            return float("nan")
        return sink.tell() / 1000
