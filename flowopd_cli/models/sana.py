"""SANA and SANA-1.5: any diffusers folder or Hub id; not SANA-Sprint, whose path is not linear."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0, SanaTransformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.attention import CrossAttention
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.texts import instructed

TRAIN_TIMESTEPS = 1000
INSTRUCTION = "complex_human_instruction"


class SanaModel(PipelineModel):
    """SANA. Its folder has a solver of flow predictions, whose shift makes this family's grid of Euler steps."""

    transformer_class = SanaTransformer2DModel
    autoencoder_class = AutoencoderDC
    scheduler_class = DPMSolverMultistepScheduler
    pipeline_name = "SanaPipeline"
    text_key = "caption_channels"
    masked = True
    processors = {SanaAttnProcessor2_0: CrossAttention}  # noqa: RUF012
    plain_options = {"use_resolution_binning": False}  # noqa: RUF012

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the transformer's own sample size.

        Raises :class:`ArtifactError`: the resolution is between two patches.
        """
        config = self.transformer.config
        side = self._side(config.sample_size, config.patch_size)
        return config.in_channels, side, side

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The Euler scheduler's grid with the solver's shift, unless another is given.

        Raises :class:`ArtifactError`: the solver does not predict a flow.
        """
        config = self._scheduler.config
        if shift is None and config.prediction_type != "flow_prediction":
            raise ArtifactError(
                f"{self.folder}: the scheduler's predictions are no flow: use a copy of the base whose "
                "scheduler_config.json has prediction_type flow_prediction"
            )
        return flow_sigmas(steps, config.flow_shift if shift is None else shift)

    @classmethod
    def prepare_plain(cls, pipeline: Any) -> None:
        """Replace the solver by Euler steps."""
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.flow_shift)

    def text_limit(self, tokenizer: Any) -> int:
        """The pipeline reads two tokens less of a prompt after its instruction, which the tokenizer's marks precede."""
        return self.max_sequence_length - 2 + tokenizer.num_special_tokens_to_add()

    def _embed(self, texts: list[str]) -> Conditioning:
        pipeline = self._pipeline()
        encoded = pipeline.encode_prompt(
            texts,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default,
        )
        return instructed(texts, *encoded)

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        velocity = self._transform(
            adapters,
            hidden_states=latents.to(self.dtype),
            timestep=sigma * TRAIN_TIMESTEPS * self.transformer.config.timestep_scale,
            encoder_hidden_states=cond.embeds,
            encoder_attention_mask=cond.mask,
        )
        return velocity[:, : latents.shape[1]]  # a variance may follow
