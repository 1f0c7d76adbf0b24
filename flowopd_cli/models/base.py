"""The interfaces of a model family: :class:`FlowModel` for training and sampling, :class:`LoadedModel` for stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning

if TYPE_CHECKING:
    from flowopd_cli.models.adapters import AdapterBank
    from flowopd_cli.models.tokens import Excess


class FlowModel(Protocol):
    """A flow-matching text-to-image model: one loaded base, with an adapter for each role.

    ``classifier_free``: guidance doubles the batch with the empty prompt; otherwise it is an input of the network at no
    cost.
    """

    classifier_free: bool

    @property
    def adapters(self) -> AdapterBank:
        """The named adapters over this model's transformer; a ``WeightBank`` also has sets of all its weights."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one latent at the recipe's resolution."""
        ...

    def sigmas(self, steps: int) -> Float[Tensor, " T1"]:
        """The family's shifted grid of ``steps + 1`` sigmas from 1 to 0, float64."""
        ...

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts, one row each; earlier texts are cached."""
        ...

    def velocity(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        *,
        guidance: float | Sequence[float],
        adapters: Sequence[str | None] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        """Velocity with guidance, one number or one for each row; at 1 there is no second half.

        ``adapters`` names each row's adapter (``None``: the base) in place of the active one, without gradients.
        """
        ...

    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1], float32."""
        ...


class LoadedModel(FlowModel, Protocol):
    """The interface for stages beyond :class:`FlowModel`; a family's ``load`` returns one (docs/add_a_model.md)."""

    device: torch.device

    @property
    def fingerprint(self) -> str:
        """Digest that identifies the base."""
        ...

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The family's grid, with its own shift unless another is given."""
        ...

    def encode_ahead(self, texts: Sequence[str]) -> None:
        """Encode all texts of a run and release the text encoders."""
        ...

    def truncated(self, texts: Sequence[str]) -> dict[str, Excess]:
        """The texts that are longer than every text encoder reads, with the tokens of each and those that are read."""
        ...
