"""Attention through diffusers' backends, which some of diffusers' own processors ignore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn

from flowopd_cli.errors import ArtifactError, one_line

BACKENDS = {
    "sdpa": "native",
    "sdpa-flash": "_native_flash",
    "sdpa-efficient": "_native_efficient",
    "sdpa-cudnn": "_native_cudnn",
    "sdpa-math": "_native_math",
    "flash": "flash",
    "flash3": "_flash_3",
    "flex": "flex",
    "xformers": "xformers",
}


class JointAttention:
    """Computes ``JointAttnProcessor2_0`` of diffusers, with the attention of the chosen backend."""

    _attention_backend = _parallel_config = None  # for set_attention_backend of diffusers

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Picture tokens ``(b, n, d)`` and text tokens ``(b, l, d)``, each attending to both."""
        tokens = hidden_states.shape[1]
        picture_parts = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        heads = _project(hidden_states, *picture_parts, attn.heads)
        if encoder_hidden_states is not None:
            text_parts = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), (attn.norm_added_q, attn.norm_added_k)
            text = _project(encoder_hidden_states, *text_parts, attn.heads)
            heads = [torch.cat(pair, dim=1) for pair in zip(heads, text, strict=True)]
        query, key, value = heads
        mixed = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        mixed = mixed.flatten(2).to(query.dtype)
        picture = attn.to_out[1](attn.to_out[0](mixed[:, :tokens]))
        if encoder_hidden_states is None:
            return picture
        text_out = mixed[:, tokens:]
        return picture, text_out if attn.context_pre_only else attn.to_add_out(text_out)


class CrossAttention:
    """Computes ``SanaAttnProcessor2_0`` of diffusers, with the attention of the chosen backend."""

    _attention_backend = _parallel_config = None  # for set_attention_backend of diffusers

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Any = None
    ) -> Tensor:
        """Picture tokens ``(b, n, d)`` attend to text tokens ``(b, l, d)``; scores get the mask ``(b, 1, l)`` added."""
        maps = (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)
        parts = [project(states) for project, states in maps]
        norms = (attn.norm_q, attn.norm_k, None)  # over all heads, unlike those of joint attention
        normalized = [part if norm is None else norm(part) for part, norm in zip(parts, norms, strict=True)]
        query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in normalized)
        mask = None if attention_mask is None else attention_mask[:, None]
        mixed = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2).to(query.dtype))) / attn.rescale_output_factor


PROCESSORS: Mapping[type, type] = {JointAttnProcessor2_0: JointAttention}


def _project(states: Tensor, maps: Iterable[nn.Module], norms: Iterable[nn.Module | None], heads: int) -> list[Tensor]:
    """Query, key and value ``(b, n, heads, width)``, the first two normalized where the model does so."""
    query, key, value = (part(states).unflatten(-1, (heads, -1)) for part in maps)
    normalized = [part if norm is None else norm(part) for part, norm in zip((query, key), norms, strict=True)]
    return [*normalized, value]


def choose_attention(
    transformer: Any, name: str, *, masked: bool = False, processors: Mapping[type, type] = PROCESSORS
) -> None:
    """Choose the transformer's attention backend from ``BACKENDS``; ``auto`` leaves diffusers' default.

    ``masked``: it has to work with a mask of tokens. ``processors`` replace those of diffusers that ignore backends.

    Raises :class:`ArtifactError`: no such backend, its package is missing, or it does not work with this device and
    precision.
    """
    if name == "auto":
        return
    if name not in BACKENDS:
        raise ArtifactError(f"model.attention {name!r} is none of auto, {', '.join(BACKENDS)}")
    layers = [layer for layer in transformer.modules() if isinstance(layer, Attention | AttentionModuleMixin)]
    for layer in layers:
        if type(layer.processor) in processors:
            layer.set_processor(processors[type(layer.processor)]())  # pyright: ignore[reportArgumentType]
    try:
        with attention_backend():  # restores the default for other models of the process
            transformer.set_attention_backend(BACKENDS[name])
        _try(
            next(layer for layer in layers if hasattr(layer.processor, "_attention_backend")),
            next(transformer.parameters()),
            masked,
        )
    except Exception as error:
        raise ArtifactError(f"model.attention {name} cannot work here ({one_line(error)[:200]}): use auto") from error


def _try(layer: Any, like: Tensor, masked: bool) -> None:
    """One small forward and backward in the shape and precision that training will use."""
    width = layer.to_q.weight.shape[0] // layer.heads
    parts = torch.randn(3, 1, 64, layer.heads, width, device=like.device, dtype=like.dtype, requires_grad=True)
    query, key, value = parts.unbind()
    mask = torch.ones(1, 1, 1, 64, dtype=torch.bool, device=like.device) if masked else None
    dispatch_attention_fn(query, key, value, mask, backend=layer.processor._attention_backend).sum().backward()
    if parts.grad is None:
        raise RuntimeError("it has no gradients")
