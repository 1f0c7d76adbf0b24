"""Classifier-free guidance over any family's forward: one batch, with a negative half only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning

Forward = Callable[[Tensor, Tensor, Conditioning, Sequence[str | None] | None], Tensor]
Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def extrapolated(
    negative: Float[Tensor, "b C H W"], positive: Float[Tensor, "b C H W"], scale: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b C H W"]:
    """``v_neg + scale (v_pos - v_neg)``."""
    return negative + scale * (positive - negative)


def with_norm_of(reference: Float[Tensor, "*n D"], guided: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """``guided``, its last dimension scaled to the norm of ``reference``."""
    norm = guided.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return guided * (reference.norm(dim=-1, keepdim=True) / norm)


@dataclass(frozen=True)
class ClassifierFree:
    """Guided velocities by one call of ``forward`` for all rows; ``combine`` makes one from ``v_neg, v_pos, scale``."""

    forward: Forward
    combine: Combine = extrapolated

    def velocity(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        guidance: float | Sequence[float],
        adapters: Sequence[str | None] | None,
    ) -> Float[Tensor, "b C H W"]:
        """Rows of the empty prompt come first in the batch.

        ``guidance`` is one number or one for each row; a row of 1 has no ``v_neg``. ``adapters`` names each row's own.

        Raises :class:`ValueError`: a row is guided, but the conditioning has no empty prompt.
        """
        scales = list(guidance) if isinstance(guidance, Sequence) else [guidance] * len(latents)
        some = [row for row, scale in enumerate(scales) if scale != 1]
        if not some:
            return self.forward(latents, sigma, cond.positive, adapters)
        every = len(some) == len(latents)
        rows = slice(None) if every else torch.tensor(some, device=latents.device)
        velocity = self.forward(
            torch.cat([latents[rows], latents]),
            torch.cat([sigma[rows], sigma]),
            Conditioning.cat([cond.negative[rows], cond.positive]),
            adapters and [*(adapters[row] for row in some), *adapters],
        )
        negative, positive = velocity[: len(some)], velocity[len(some) :]
        scale = velocity.new_tensor([scales[row] for row in some]).view(-1, 1, 1, 1)
        combined = self.combine(negative, positive[rows], scale)
        return combined if every else positive.index_copy(0, rows, combined)  # type: ignore[arg-type]
