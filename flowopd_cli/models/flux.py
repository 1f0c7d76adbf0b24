"""FLUX.1: any diffusers folder or Hub id, with guidance as an input of the network (dev) or without any (schnell)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from flowopd_cli.core.schedule import shift_sigmas
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.pipeline import PipelineModel

PACKED = 2  # latent pixels along a side of one token
SAMPLE_SIZE = 128  # the pipeline's own, in latent pixels
OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal", "invert_sigmas")


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
        side = self._side(SAMPLE_SIZE, PACKED)
        return config.in_channels // PACKED**2, side, side

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The pipeline's grid: even steps, shifted by ``shift`` or the scheduler's rule for this resolution.

        Raises :class:`ArtifactError`: the scheduler makes another grid.
        """
        even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        shifted = shift_sigmas(even, self._shift() if shift is None else shift)
        return torch.cat([shifted, torch.zeros(1, dtype=torch.float64)])

    def _shift(self) -> float:
        """The scheduler's shift: a constant, or one whose logarithm is linear in the number of tokens."""
        config = self._scheduler.config
        unsupported = [name for name in OTHER_GRIDS if config.get(name)]
        if unsupported:
            raise ArtifactError(f"{self.folder}: the scheduler's {unsupported[0]} is not supported; set sampling.shift")
        if not config.use_dynamic_shifting:
            return config.shift
        _, height, width = self.latent_shape
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (height * width // PACKED**2 - config.base_image_seq_len)
        return mu if config.time_shift_type == "linear" else math.exp(mu)

    def _embed(self, texts: list[str]) -> tuple[Float[Tensor, "b L D"], Float[Tensor, "b P"]]:
        embeds, pooled, _ = self._pipeline().encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return embeds, pooled

    def velocity(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        *,
        guidance: float | Sequence[float],
        adapters: Sequence[str | None] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        """One forward, whatever the guidance.

        Raises :class:`ArtifactError`: the base takes no guidance, and a row has another than 1.
        """
        height, width = (side // PACKED for side in latents.shape[2:])
        tokens = self._transform(
            adapters,
            hidden_states=self.packed(latents).to(self.dtype),
            timestep=sigma,
            guidance=self._guidance(guidance, sigma),
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
            txt_ids=torch.zeros(cond.embeds.shape[1], 3, device=latents.device),
            img_ids=_places(height, width, latents.device),
        )
        return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), PACKED)

    def _guidance(self, guidance: float | Sequence[float], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"] | None:
        scales = guidance if isinstance(guidance, Sequence) else [guidance] * len(sigma)
        if self.transformer.config.guidance_embeds:
            return sigma.new_tensor(scales)
        if any(scale != 1 for scale in scales):
            raise ArtifactError(
                f"{self.folder}: this base takes no guidance: set sampling.guidance, eval.guidance and "
                "push.verify_guidance to 1, if the recipe has them, and leave out those of teachers and anchor"
            )
        return None

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b n D"]:
        """The transformer's tokens, which the pipeline calls latents: 2 x 2 pixels each, row by row."""
        return pixel_unshuffle(latents, PACKED).flatten(2).transpose(1, 2)


def _places(height: int, width: int, device: torch.device) -> Float[Tensor, "n 3"]:
    """Row and column of each token, behind a number that is 0 for one picture."""
    return torch.cartesian_prod(*(torch.arange(size, device=device).float() for size in (1, height, width)))
