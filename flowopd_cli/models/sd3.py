"""Stable Diffusion 3 and 3.5: any diffusers folder or Hub id."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.system.json_files import read_json

TRAIN_TIMESTEPS = 1000
CLIP_TOKENS = 77


class SD3Model(PipelineModel):
    """Stable Diffusion 3 and 3.5."""

    transformer_class = SD3Transformer2DModel
    pipeline_name = "StableDiffusion3Pipeline"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the transformer's own sample size.

        Raises :class:`ArtifactError`: the resolution is no multiple of a patch, or larger than the base has positions
        for.
        """
        config = self.transformer.config
        side, largest = self._side(config.sample_size, config.patch_size), config.patch_size * config.pos_embed_max_size
        if self._resolution is not None and side > largest:
            most = self._resolution // side * largest
            raise ArtifactError(
                f"model.resolution {self._resolution}: this base has positions for at most {most} pixels, so lower it"
            )
        return config.in_channels, side, side

    @property
    def text_tokens(self) -> int:
        """CLIP's tokens and T5's, one after the other."""
        config = read_json(self.folder / "tokenizer" / "tokenizer_config.json", "configuration of the tokenizer")
        tokens = config.get("model_max_length", CLIP_TOKENS)
        if not isinstance(tokens, int) or tokens < 1:
            raise ArtifactError(f"{self.folder}: the tokenizer's model_max_length is not a number of tokens")
        return tokens + self.max_sequence_length

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The scheduler's grid, with its own shift unless another is given.

        Raises :class:`ArtifactError`: the scheduler shifts by resolution, which SD3's does not.
        """
        config = self._scheduler.config
        if config.use_dynamic_shifting and shift is None:
            raise ArtifactError(
                f"{self.folder}: the scheduler shifts by resolution: use a copy of the base whose "
                "scheduler_config.json has use_dynamic_shifting false"
            )
        return flow_sigmas(steps, config.shift if shift is None else shift)

    def _embed(self, texts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = self._pipeline().encode_prompt(
            *(texts, None, None),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
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
        return self._transform(
            adapters,
            hidden_states=latents.to(self.dtype),
            timestep=sigma * TRAIN_TIMESTEPS,
            encoder_hidden_states=cond.embeds,
            pooled_projections=cond.pooled,
        )
