"""Depth of a picture by DPT-Hybrid (MiDaS), prepared as in T2I-CompBench's 3D category.

Source: Ranftl et al. 2021, arXiv 2103.13413 (weights Apache-2.0); T2I-CompBench++.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.rewards.compbench.detectors import load_complete
from flowopd_cli.rewards.compbench.spatial import frame_size
from flowopd_cli.rewards.weights import pick_device, weights_id

DPT_HYBRID = "Intel/dpt-hybrid-midas"
SIDE = 480
# The first fusion layer does not use its first residual unit, which published files lack.
UNUSED = "fusion_stage.layers.0.residual_layer1."


class DepthEstimator:
    """A DPT model without gradients; ``name`` is part of the name of its figures."""

    name = "dpt-hybrid"

    def __init__(self, source: str = DPT_HYBRID, *, device: str = "auto", batch: int = 8) -> None:
        """Read a ``DPTForDepthEstimation`` from a local folder or a Hub id.

        Raises :class:`ArtifactError`: it is missing, or incomplete.
        """
        from transformers import DPTForDepthEstimation, DPTImageProcessorPil

        model = load_complete(DPTForDepthEstimation, source, unused=UNUSED).to(pick_device(device)).float()
        embeddings = model.dpt.embeddings
        holder = embeddings if hasattr(embeddings, "image_size") else embeddings.patch_embeddings
        holder.image_size = (SIDE, SIDE)  # passes the check of sizes; the table of positions is interpolated
        self._model, self._batch = model.eval().requires_grad_(False), batch
        self._processor = DPTImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        self.engine = f"{self.name}/{weights_id(source)}"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[Float[Tensor, "h w"]]:
        """Depth of each picture in the detector's frame, in [0, 1], larger for what is nearer."""
        maps: list[Tensor] = []
        for start in range(0, len(pictures), self._batch):
            part = pictures[start : start + self._batch]
            pixels = self._processor(list(part), return_tensors="pt").pixel_values
            output = self._model(pixel_values=pixels.to(self._model.device)).predicted_depth
            maps += [to_frame(row, picture.size) for row, picture in zip(output.cpu(), part, strict=True)]
        return maps


def to_frame(predicted: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """A predicted map, prepared as in the official script, for a picture of ``size`` (width, height).

    It is stretched to [0, 1], enlarged to the picture, stored in 8 bits and reduced to the detector's frame. A flat map
    becomes zeros, one with non-finite numbers NaN.
    """
    if not bool(predicted.isfinite().all()):
        return torch.full(frame_size(*size)[::-1], torch.nan)
    relief = predicted - predicted.min()
    relief = relief / relief.max() if float(relief.max()) > 0 else torch.zeros_like(relief)
    grown = torch.nn.functional.interpolate(relief[None, None], size=size[::-1], mode="bilinear", align_corners=True)
    stored = Image.fromarray((255 * grown[0, 0]).numpy()).convert("L")
    framed = stored.resize(frame_size(*size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(framed)).float() / 255
