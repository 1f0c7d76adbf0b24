"""Statistics of latents and pictures against values that follow from the definition."""

import colorsys
import math

import pytest
import torch

from flowopd_cli.core import statistics

SIZE = 16


def picture(*color):
    return torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)


def waves(cycles, amplitude=0.25):
    """Grey pictures with a wave of so many cycles a pixel along each axis."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    down, across = cycles
    wave = 0.5 + amplitude * torch.cos(2 * math.pi * (down * y + across * x))
    return wave.float()[None, None].expand(1, 3, -1, -1)


def test_the_norm_of_a_latent_is_its_root_mean_square():
    latents = torch.stack([torch.full((2, 3, 3), -2.0), torch.tensor([3.0, -4.0])[:, None, None].expand(2, 3, 3)])
    assert statistics.latent_norm(latents).tolist() == pytest.approx([2.0, math.sqrt(12.5)])


def test_equal_latents_have_no_diversity_and_orthogonal_ones_the_full():
    one, two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    latents = torch.stack([one, one, one, two, 5 * one, 5 * two, one])
    diversity = statistics.diversity(latents, torch.tensor([0, 0, 1, 1, 2, 2, 3]))
    assert diversity[:6].tolist() == pytest.approx([0, 0, 1, 1, 1, 1])
    assert diversity[6].isnan()  # a group of one


def test_independent_latents_have_a_diversity_of_one_whatever_their_norm():
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 30.0):
        assert statistics.diversity(scale * latents, torch.zeros(6, dtype=torch.long))[0] == pytest.approx(1, abs=0.02)


def test_brightness_and_saturation_are_those_of_the_color():
    red, pale, black = (1.0, 0.0, 0.0), (0.8, 0.6, 0.7), (0.0, 0.0, 0.0)
    images = torch.cat([picture(*color) for color in (red, pale, black)])
    expected = [0.2126, 0.2126 * 0.8 + 0.7152 * 0.6 + 0.0722 * 0.7, 0.0]
    assert statistics.brightness(images).tolist() == pytest.approx(expected)
    saturations = [colorsys.rgb_to_hsv(*color)[1] for color in (red, pale, black)]
    assert statistics.saturation(images).tolist() == pytest.approx(saturations)


@pytest.mark.parametrize("cycles", [(0.5, 0.5), (0.375, 0.0), (0.0625, 0.4375)])
def test_a_fine_wave_is_all_high_frequency(cycles):
    rms = 0.25 if cycles == (0.5, 0.5) else 0.25 / math.sqrt(2)  # a checkerboard, a cosine
    assert float(statistics.high_frequency(waves(cycles))) == pytest.approx(rms, rel=1e-4)


@pytest.mark.parametrize("cycles", [(0.0, 0.0), (0.25, 0.0), (0.125, 0.1875)])
def test_a_coarse_wave_has_no_high_frequency(cycles):
    assert float(statistics.high_frequency(waves(cycles))) == pytest.approx(0, abs=1e-6)
