"""FLUX.2-klein, base and distilled: any diffusers folder or Hub id; not FLUX.2-dev."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.grids import dynamic_shift
from flowopd_cli.models.packing import from_tokens, to_tokens
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.texts import chat_prefix
from flowopd_cli.system.json_files import read_json

MU = {10: (8.73809524e-05, 1.89833333), 200: (0.00016927, 0.45666666)}  # by steps: slope and offset over tokens
MOST_TOKENS = 4300  # of a picture, beyond which the steps do not matter


class Flux2KleinModel(PipelineModel):
    """FLUX.2-klein. Latents are ``(b, C, H, W)`` as in the autoencoder; a token is 2 x 2 of their pixels."""

    transformer_class = Flux2Transformer2DModel
    autoencoder_class = AutoencoderKLFlux2
    pipeline_name = "Flux2KleinPipeline"
    first_diffusers = "0.37"
    block_lists = ("transformer_blocks", "single_transformer_blocks")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the pipeline's own.

        Raises :class:`ArtifactError`: the resolution is between two patches, or the base is FLUX.2-dev.
        """
        if self.transformer.config.guidance_embeds:
            raise ArtifactError(f"{self.folder}: its network takes guidance as an input, as FLUX.2-dev; this family is "
                                "FLUX.2-klein: choose one of its bases")  # fmt: skip
        channels, height, width = super().latent_shape
        return channels // self.patch**2, height, width

    @property
    def takes_guidance(self) -> bool:
        """Whether this base is not a distilled one."""
        return not self._is_distilled

    @cached_property
    def _is_distilled(self) -> bool:
        index = self.folder / "model_index.json"
        return index.is_file() and bool(read_json(index, "pipeline index").get("is_distilled"))

    def _shift(self, steps: int) -> float:
        """The pipeline's own rule in place of the scheduler's: linear in the tokens of a picture and in the steps."""
        config = self._scheduler.config
        if not config.use_dynamic_shifting:
            return config.shift
        few, many = (slope * self.picture_tokens + offset for slope, offset in MU.values())
        least, most = MU
        part = (steps - least) / (most - least) if self.picture_tokens <= MOST_TOKENS else 1.0
        return dynamic_shift(config, few + part * (many - few))

    def text_limit(self, tokenizer: Any) -> int:
        """The tokens that the chat template leaves to a prompt."""
        return self.max_sequence_length - chat_prefix(tokenizer)

    def _embed(self, texts: list[str]) -> Conditioning:
        embeds, _ = self._pipeline().encode_prompt(
            texts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(embeds)

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
            hidden_states=to_tokens(latents, self.patch).to(self.dtype),
            timestep=sigma,
            encoder_hidden_states=cond.embeds,
            txt_ids=_places(1, 1, cond.embeds.shape[1], latents.device),
            img_ids=_places(height, width, 1, latents.device),
        )
        return from_tokens(tokens, self.patch, latents)

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 4*C H/2 W/2"]:
        """2 x 2 pixels in the channels of one: what the pipeline calls latents."""
        return pixel_unshuffle(latents, self.patch)

    def _decoded(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """The autoencoder's BatchNorm has the mean and variance of every channel of packed latents."""
        mean, variance = self._vae.bn.running_mean, self._vae.bn.running_var + self._vae.config.batch_norm_eps
        scaled = self.packed(latents) * variance.sqrt()[:, None, None] + mean[:, None, None]
        return self._vae.decode(pixel_shuffle(scaled, self.patch), return_dict=False)[0]


def _places(height: int, width: int, words: int, device: torch.device) -> Float[Tensor, "n 4"]:
    """Row, column and place in a text of each token, behind a number that is 0 for one picture."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in (1, height, width, words)))
