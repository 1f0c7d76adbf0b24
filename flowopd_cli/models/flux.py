"""FLUX.1: any diffusers folder or Hub id, with guidance as an input of the network (dev) or without any (schnell)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.packing import from_tokens, to_tokens
from flowopd_cli.models.pipeline import PipelineModel


class FluxModel(PipelineModel):
    """FLUX.1. Latents are ``(b, C, H, W)`` as in the autoencoder; a token is 2 x 2 of their pixels."""

    transformer_class = FluxTransformer2DModel
    pipeline_name = "FluxPipeline"
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    classifier_free = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the pipeline's own.

        Raises :class:`ArtifactError`: the resolution is between two patches, or the transformer takes a picture to
        edit.
        """
        config = self.transformer.config
        if config.out_channels not in (None, config.in_channels):
            raise ArtifactError(f"{self.folder}: its transformer takes a picture beside the noise (FLUX.1 Fill or a "
                                "control model); only the models that draw from text alone can be trained")  # fmt: skip
        channels, height, width = super().latent_shape
        return channels // self.patch**2, height, width

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance is an input of this network."""
        return self.transformer.config.guidance_embeds

    def _embed(self, texts: list[str]) -> Conditioning:
        embeds, pooled, _ = self._pipeline().encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(embeds, pooled)

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        height, width = (side // self.patch for side in latents.shape[2:])
        tokens = self._transform(
            adapters,
            hidden_states=self.packed(latents).to(self.dtype),
            timestep=sigma,
            guidance=guidance if self.takes_guidance else None,
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
            txt_ids=torch.zeros(cond.embeds.shape[1], 3, device=latents.device),
            img_ids=_places(height, width, latents.device),
        )
        return from_tokens(tokens, self.patch, latents)

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b n D"]:
        """The transformer's tokens, which the pipeline calls latents: 2 x 2 pixels each, row by row."""
        return to_tokens(latents, self.patch)


def _places(height: int, width: int, device: torch.device) -> Float[Tensor, "n 3"]:
    """Row and column of each token, behind a number that is 0 for one picture."""
    return torch.cartesian_prod(*(torch.arange(size, device=device).float() for size in (1, height, width)))
