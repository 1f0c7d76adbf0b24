"""Latents as tokens of ``patch`` x ``patch`` pixels, row by row, and back."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def to_tokens(latents: Float[Tensor, "b C H W"], patch: int) -> Float[Tensor, "b n D"]:
    """Tokens of ``C * patch**2`` numbers, those of a channel side by side."""
    return pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def from_tokens(tokens: Float[Tensor, "b n D"], patch: int, like: Float[Tensor, "b C H W"]) -> Float[Tensor, "b C H W"]:
    """Tokens in the layout of the latents ``like``."""
    height, width = (side // patch for side in like.shape[2:])
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), patch)
