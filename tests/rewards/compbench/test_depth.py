"""Depth against the model itself, and its preparation by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_compbench import save_depth, without
from support.tiny_scorers import pictures

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.compbench.depth import DepthEstimator, to_frame
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.weights import weights_id


def test_depth_is_that_of_the_model_at_480_pixels(tmp_path):
    """The folder lacks the weights that the model does not use, as the published file does."""
    model, images = save_depth(tmp_path), to_pil(pictures(3))
    model.dpt.embeddings.image_size = (480, 480)
    small = np.array(images[1].resize((480, 480), Image.Resampling.BILINEAR))
    pixels = (torch.from_numpy(small).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        predicted = model(pixel_values=pixels).predicted_depth[0]
    estimator = DepthEstimator(str(tmp_path), batch=2)
    maps = estimator(images)
    assert [tuple(depth.shape) for depth in maps] == [(343, 480)] * 3  # 56 x 40: long side 480
    assert torch.allclose(maps[1], to_frame(predicted, images[1].size), atol=2 / 255)
    assert estimator.engine == f"dpt-hybrid/{weights_id(str(tmp_path))}"


def test_missing_weights_are_refused(tmp_path):
    (tmp_path / "depth").mkdir()
    save_depth(tmp_path / "depth")
    with pytest.raises(ArtifactError, match=r"missing .first .*head\.head\.0"):
        DepthEstimator(without(tmp_path / "depth", tmp_path, "head.head.0"))


def test_depth_is_stretched_stored_in_bytes_and_reduced():
    framed = to_frame(torch.tensor([[2.0, 6.0], [2.0, 6.0]]), (479, 479))
    assert framed.shape == (479, 479)
    assert (float(framed.min()), float(framed.max())) == (0.0, 1.0)
    steps = framed[0] * 255
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert torch.all(steps.diff() >= 0)
    assert not to_frame(torch.full((2, 2), 3.0), (64, 64)).any()


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_a_map_with_non_finite_numbers_is_nan(hole):
    framed = to_frame(torch.tensor([[1.0, hole], [2.0, 3.0]]), (64, 48))
    assert framed.isnan().all()
    assert framed.shape == (360, 480)
