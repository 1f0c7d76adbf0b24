"""Z-Image and Z-Image-Turbo: any diffusers folder or Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.texts import chat_prefix, padded

TURBO_SHIFT = 3.0


class ZImageModel(PipelineModel):
    """Z-Image. Its network is given ``1 - sigma`` and returns the negative velocity, for lists of rows."""

    transformer_class = ZImageTransformer2DModel
    pipeline_name = "ZImagePipeline"
    block_lists = ("noise_refiner", "context_refiner", "layers")
    flat_modules = ("all_x_embedder", "cap_embedder")
    text_key = "cap_feat_dim"
    masked = True
    first_diffusers = "0.39"  # earlier ones end the grid with a step of length 0

    @property
    def takes_guidance(self) -> bool:
        """Not so for Turbo, whose published folder differs from the base's by its scheduler's shift alone: 3, not 6."""
        return self._scheduler.config.shift != TURBO_SHIFT

    def text_limit(self, tokenizer: Any) -> int:
        """The tokens that the chat template leaves to a prompt."""
        return self.max_sequence_length - chat_prefix(tokenizer)

    def _embed(self, texts: list[str]) -> Conditioning:
        rows, _ = self._pipeline().encode_prompt(
            list(texts),  # the pipeline puts each into the chat template in place
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return padded(rows, self.max_sequence_length)

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        frames = self._transform(
            adapters,
            x=list(latents.to(self.dtype).unsqueeze(2)),
            t=1 - sigma,
            cap_feats=cond.unpadded(),
        )
        return -frames.squeeze(2)
