"""Statistics of latents and pictures that change when a policy exploits its reward: one number a row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of red, green and blue (ITU-R BT.709)


def latent_norm(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The root mean square of each latent."""
    return latents.float().square().flatten(1).mean(dim=1).sqrt()


def diversity(latents: Float[Tensor, "B C H W"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Each row's group: the mean distance of its pairs, over that of unrelated latents of the same norm.

    0 if all latents of a group are equal, about 1 if they are independent, NaN in a group of one.
    """
    flat, values = latents.flatten(1).double(), latents.new_zeros(len(latents), dtype=torch.float64)
    for index in group.unique():
        rows = group == index
        unrelated = (2 * flat[rows].square().sum(dim=1).mean()).sqrt()
        values[rows] = torch.pdist(flat[rows]).mean() / unrelated
    return values.float()


def brightness(images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, " B"]:
    """The mean luminance of pictures in [0, 1]."""
    return _luminance(images).flatten(1).mean(dim=1)


def saturation(images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, " B"]:
    """The mean saturation of the HSV model, ``(max - min) / max`` over the colors of a pixel; 0 for black."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    return torch.where(high > 0, (high - low) / high.clamp_min(1e-12), 0.0).flatten(1).mean(dim=1)


def high_frequency(images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, " B"]:
    """The root mean square of the luminance above a quarter cycle a pixel, in either direction: noise, grids, halos."""
    spectrum = torch.fft.fft2(_luminance(images))
    height, width = spectrum.shape[-2:]
    rows, columns = (torch.fft.fftfreq(size, device=images.device).abs() for size in (height, width))
    high = torch.maximum(rows[:, None], columns[None]) > 0.25
    return (spectrum.abs().square() * high).sum(dim=(1, 2)).sqrt() / (height * width)  # Parseval's theorem


def _luminance(images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B Y X"]:
    return torch.einsum("bcyx,c->byx", images.float(), images.new_tensor(LUMINANCE, dtype=torch.float32))
