"""Classifier-free guidance over any family's forward: one batch, with a negative half only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning

Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None, Sequence[str | None] | None], Tensor]


def guided(
    forward: Forward,
    latents: Float[Tensor, "b C H W"],
    sigma: Float[Tensor, " b"],
    cond: Conditioning,
    guidance: float | Sequence[float],
    adapters: Sequence[str | None] | None,
) -> Float[Tensor, "b C H W"]:
    """``v_neg + guidance (v_pos - v_neg)`` by one call of ``forward``, in which the negative rows come first.

    ``guidance`` is one number or one for each row; a row of 1 has no ``v_neg``. ``adapters`` names each row's own.

    Raises :class:`ValueError`: a row is guided, but the conditioning has no empty prompt.
    """
    scales = list(guidance) if isinstance(guidance, Sequence) else [guidance] * len(latents)
    some = [row for row, scale in enumerate(scales) if scale != 1]
    if not some:
        return forward(latents, sigma, cond.embeds, cond.pooled, adapters)
    if cond.neg_embeds is None or cond.neg_pooled is None or cond.pooled is None:
        raise ValueError("guidance needs the empty prompt's rows in the conditioning")
    every = len(some) == len(latents)
    rows = slice(None) if every else torch.tensor(some, device=latents.device)
    velocity = forward(
        torch.cat([latents[rows], latents]),
        torch.cat([sigma[rows], sigma]),
        torch.cat([cond.neg_embeds[rows], cond.embeds]),
        torch.cat([cond.neg_pooled[rows], cond.pooled]),
        adapters and [*(adapters[row] for row in some), *adapters],
    )
    negative, positive = velocity[: len(some)], velocity[len(some) :]
    scale = velocity.new_tensor([scales[row] for row in some]).view(-1, 1, 1, 1)
    line = negative + scale * (positive[rows] - negative)
    return line if every else positive.index_copy(0, rows, line)  # type: ignore[arg-type]
