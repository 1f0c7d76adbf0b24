"""Qwen-Image: any diffusers folder or Hub id whose network draws from text alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.guidance import with_norm_of
from flowopd_cli.models.packing import from_tokens, to_tokens
from flowopd_cli.models.pipeline import PipelineModel

EDITS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")  # settings of networks that are given pictures
LAST_TEXT = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")


class QwenImageModel(PipelineModel):
    """Qwen-Image. Latents are those of one frame of a video autoencoder; a token is 2 x 2 of their pixels."""

    transformer_class = QwenImageTransformer2DModel
    autoencoder_class = AutoencoderKLQwenImage
    pipeline_name = "QwenImagePipeline"
    masked = True
    first_diffusers = "0.37"  # earlier ones attend to padding

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the pipeline's own.

        Raises :class:`ArtifactError`: the resolution is between two patches, or the network takes pictures.
        """
        if any(self.transformer.config.get(name) for name in EDITS):
            raise ArtifactError(f"{self.folder}: its transformer takes pictures beside the noise (Qwen-Image-Edit or "
                                "-Layered); only the models that draw from text alone can be trained")  # fmt: skip
        channels, height, width = super().latent_shape
        return channels // self.patch**2, height, width

    @property
    def idle_modules(self) -> tuple[str, ...]:
        """In the last block the text is read as keys and values alone: nothing comes after it."""
        last = len(self.transformer.transformer_blocks) - 1
        return tuple(f"transformer_blocks.{last}.{name}" for name in LAST_TEXT)

    def _embed(self, texts: list[str]) -> Conditioning:
        """The pipeline pads to the longest text; one more of the greatest length makes rows independent of others."""
        pipeline = self._pipeline()
        pipeline.tokenizer_max_length = self.max_sequence_length  # tokens depend on none that follow
        embeds, mask = pipeline.encode_prompt(
            [*texts, " a" * self.max_sequence_length],
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        mask = torch.ones_like(embeds[..., 0]) if mask is None else mask
        return Conditioning(embeds[:-1], mask=mask[:-1].bool())

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        embeds, mask = _shortened(cond)
        tokens = self._transform(
            adapters,
            hidden_states=self.packed(latents).to(self.dtype),
            timestep=sigma,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *(side // self.patch for side in latents.shape[2:]))]] * len(latents),
        )
        return from_tokens(tokens, self.patch, latents)

    def _combined(
        self, negative: Float[Tensor, "b C H W"], positive: Float[Tensor, "b C H W"], scale: Float[Tensor, "b 1 1 1"]
    ) -> Float[Tensor, "b C H W"]:
        """Guidance that keeps the norm of each token of the prompt's velocity."""
        tokens, prompt = self.packed(super()._combined(negative, positive, scale)), self.packed(positive)
        return from_tokens(with_norm_of(prompt, tokens), self.patch, positive)

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b n D"]:
        """The transformer's tokens, which the pipeline calls latents."""
        return to_tokens(latents, self.patch)

    def _decoded(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        config = self._vae.config
        mean, std = (latents.new_tensor(part).view(-1, 1, 1) for part in (config.latents_mean, config.latents_std))
        return self._vae.decode((latents * std + mean).unsqueeze(2), return_dict=False)[0].squeeze(2)


def _shortened(cond: Conditioning) -> tuple[Tensor, Tensor | None]:
    """Embeddings and mask up to the last token of the longest prompt; no mask where none is shorter."""
    if cond.mask is None:
        return cond.embeds, None
    lengths = cond.mask.sum(dim=1).tolist()
    most = max(lengths)
    return cond.embeds[:, :most], cond.mask[:, :most] if min(lengths) < most else None
