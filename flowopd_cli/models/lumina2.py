"""Lumina-Image-2: any diffusers folder or Hub id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_lumina2 import Lumina2AttnProcessor2_0, Lumina2Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.grids import shift_of
from flowopd_cli.models.guidance import extrapolated, with_norm_of
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.speed import checkpointed
from flowopd_cli.models.texts import MARK, instructed

BETWEEN = " <Prompt Start> "  # what the pipeline puts between its system prompt and a prompt


class GroupedAttention:
    """Computes ``Lumina2AttnProcessor2_0`` of diffusers, with the attention of the chosen backend."""

    _attention_backend = _parallel_config = None  # for set_attention_backend of diffusers

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        """Tokens ``(b, n, d)`` attend to those of the mask ``(b, n)``; several heads of queries share one of keys."""
        maps = (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)
        parts = [project(states) for project, states in maps]
        width = parts[0].shape[-1] // attn.heads
        query, key, value = (part.unflatten(-1, (-1, width)) for part in parts)
        rotate: Any = partial(apply_rotary_emb, freqs_cis=image_rotary_emb, use_real=False)
        query, key = (rotate(norm(part)).to(value.dtype) for norm, part in ((attn.norm_q, query), (attn.norm_k, key)))
        key, value = (part.repeat_interleave(attn.heads // part.shape[2], dim=2) for part in (key, value))
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        mixed = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2).to(query.dtype)))


class Lumina2Model(PipelineModel):
    """Lumina-Image-2. Its network is given ``1 - sigma`` and returns the negative velocity."""

    transformer_class = Lumina2Transformer2DModel
    pipeline_name = "Lumina2Pipeline"
    block_lists = ("context_refiner", "noise_refiner", "layers")
    text_key = "cap_feat_dim"
    masked = True
    processors = {Lumina2AttnProcessor2_0: GroupedAttention}  # noqa: RUF012

    @property
    def text_tokens(self) -> int:
        """Tokens of an encoded prompt.

        Raises :class:`ArtifactError`: the network has not so many positions of text.
        """
        positions = self.transformer.config.axes_lens[0]
        if self.max_sequence_length >= positions:
            raise ArtifactError(
                f"model.max_sequence_length {self.max_sequence_length}: this base has positions for "
                f"{positions - 1} tokens of text, set at most that"
            )
        return self.max_sequence_length

    def text_limit(self, tokenizer: Any) -> int:
        """The tokens that the pipeline's system prompt leaves to a prompt."""
        kind = getattr(diffusers, self.pipeline_name)
        pipeline = kind(transformer=None, scheduler=None, vae=None, text_encoder=None, tokenizer=None)
        whole, alone = (len(tokenizer(start + MARK).input_ids) for start in (pipeline.system_prompt + BETWEEN, ""))
        return self.max_sequence_length - (whole - alone)

    def checkpoint_gradients(self) -> None:
        """As :meth:`PipelineModel.checkpoint_gradients`, also for the refiners, which diffusers leaves out."""
        super().checkpoint_gradients()
        run = checkpointed(self.adapters)
        for block in (*self.transformer.context_refiner, *self.transformer.noise_refiner):
            # where torch looks for compiled code, so that hooks run in the recomputation as well
            block._compiled_call_impl = partial(run, block._compiled_call_impl or block._call_impl)

    def _shift(self, steps: int) -> float:
        """A shift by the size of the picture is the pipeline's, which counts channels in place of tokens."""
        return shift_of(self._scheduler.config, self.latent_shape[0])

    def _embed(self, texts: list[str]) -> Conditioning:
        encoded = self._pipeline().encode_prompt(texts, device=self.device, max_sequence_length=self.text_tokens)
        return instructed(texts, *encoded)

    def _combined(
        self, negative: Float[Tensor, "b C H W"], positive: Float[Tensor, "b C H W"], scale: Float[Tensor, "b 1 1 1"]
    ) -> Float[Tensor, "b C H W"]:
        """Each line of pixels has the norm that it has without guidance."""
        return with_norm_of(positive, extrapolated(negative, positive, scale))

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        mask = cond.mask
        if mask is None:
            rows, tokens, _ = cond.embeds.shape
            mask = torch.ones(rows, tokens, dtype=torch.bool, device=latents.device)
            if mask.is_meta:  # where there are no numbers, the network counts these
                mask.sum = lambda dim: torch.full((rows,), tokens)  # pyright: ignore[reportAttributeAccessIssue]
        return -self._transform(
            adapters,
            hidden_states=latents.to(self.dtype),
            timestep=1 - sigma,
            encoder_hidden_states=cond.embeds,
            encoder_attention_mask=mask,
        )
