"""The JPEG reward: sizes as Pillow writes them, in kilobytes of 1000 bytes."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.jpeg import JpegReward

torch.manual_seed(0)
IMAGES = torch.stack([torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64)])
PROMPTS = [Prompt("0", "x", "t"), Prompt("1", "y", "t")]


def kilobytes(image, path, quality):
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(path, quality=quality)
    return path.stat().st_size / 1000


@pytest.mark.parametrize(("quality", "variant", "divisor"), [(95, "ddpo", 1), (30, "ddpo", 1), (95, "flow_grpo", 500)])
def test_sizes(tmp_path, quality, variant, divisor):
    result = JpegReward(quality, variant)(IMAGES, PROMPTS)
    sizes = torch.tensor([kilobytes(image, tmp_path / "x.jpg", quality) for image in IMAGES])
    torch.testing.assert_close(result.scores["kilobytes"], sizes)
    torch.testing.assert_close(result.total, -sizes / divisor)
    assert result.total[0] > result.total[1]
    assert result.valid.all()


def test_pixels_outside_the_range_and_no_pictures():
    assert torch.equal(JpegReward()(IMAGES * 0 + 9, PROMPTS).total, JpegReward()(IMAGES * 0 + 1, PROMPTS).total)
    assert JpegReward()(IMAGES[:0], []).total.shape == (0,)


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 100}, {"variant": "png"}])
def test_wrong_options(options):
    with pytest.raises(RewardError, match="jpeg_compressibility"):
        JpegReward(**options)


def test_a_picture_that_jpeg_cannot_hold_is_invalid():
    result = JpegReward()(torch.rand(1, 3, 1, 70000), PROMPTS[:1])
    assert result.valid.tolist() == [False]
    assert result.total.isnan().all()
    assert "JPEG cannot hold" in result.details[0]["error"]
