"""ImageReward-v1.0: a BLIP that reads the prompt while looking at the picture (Xu et al. 2023, arXiv 2304.05977).

Its checkpoint has the names of the original BLIP; here they become those of ``transformers``' ``BlipVisionModel`` and
``BlipTextModel``. The text's first state goes through a linear head: ``(head - 0.16717) / 1.03334``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.compbench.blip_weights import rename
from flowopd_cli.rewards.pictures import to_pil, to_tensor
from flowopd_cli.rewards.preference.clip import as_dtype, read_tokenizer
from flowopd_cli.rewards.preference.scoring import (
    assemble,
    centre_square,
    clip_normalized,
    declared,
    linear_head,
    scalar_result,
    warn_of_truncation,
)
from flowopd_cli.rewards.weights import pick_device, read_checkpoint, refuse_mismatch, weights_id

MODEL = "zai-org/ImageReward@5736be03b2652728fb87788c9797b0570450ab72"
FILE = "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
TOKENS = 35
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTH = 64  # of every BLIP's attention heads
VISION_EPS, TEXT_EPS = 1e-6, 1e-12
UNUSED = re.compile(r"blip\.((vision|text)_proj\..+|text_encoder\.embeddings\.position_ids)")
Tensors = dict[str, Tensor]


class ImageRewardReward(Reward):
    """About -2 to 2, higher is better: 0 is the mean and 1 the deviation over the reference's own data."""

    info = RewardInfo(
        "imagereward", "arXiv 2304.05977", -2.0, 2.0, license="Apache-2.0", note="range as usually seen, not a bound"
    )

    def __init__(
        self,
        source: str = MODEL,
        tokenizer: str = TOKENIZER,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` is ``ImageReward.pt`` or has it, ``tokenizer`` that of BERT uncased.

        Either is a local folder or ``repository@revision``. Sizes are those of the checkpoint's tensors.

        Raises :class:`ArtifactError`: one of them cannot be read, or its names or shapes are not those of ImageReward.
        """
        from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

        tensors, path = read_checkpoint(source, FILE)
        vision, text, head = _split(tensors, path)
        vision_config, text_config = _vision_config(vision, path), _text_config(text, path)
        self._device, kind = pick_device(device), as_dtype(dtype)
        self.vision = assemble(BlipVisionModel, vision_config, vision, path, kind).to(self._device)
        self.text = assemble(BlipTextModel, text_config, text, path, kind, add_pooling_layer=False).to(self._device)
        self.head = linear_head(head, text_config.hidden_size, path).to(self._device)
        self.tokenizer = read_tokenizer(BertTokenizer, tokenizer, text_config.vocab_size)
        self.side, self.source, self._batch = vision_config.image_size, source, batch
        self.weights = {"checkpoint": weights_id(source), "tokenizer": weights_id(tokenizer), "dtype": dtype}
        self.info = declared(self.info, source == MODEL and tokenizer == TOKENIZER, dtype)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that are too long."""
        warn_of_truncation(self.info.name, self.tokenizer, TOKENS, [prompt.text for prompt in prompts])

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        parts = [torch.zeros(0)]
        for start in range(0, len(prompts), self._batch):
            rows = slice(start, start + self._batch)
            states = self._text_states([prompt.text for prompt in prompts[rows]], self._picture_states(images[rows]))
            parts.append(self.head(states.float())[:, 0].cpu())
        return scalar_result((torch.cat(parts) - MEAN) / DEVIATION, {}, self.source)

    def _picture_states(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b N W"]:
        pixels = clip_normalized(to_tensor([centre_square(image, self.side) for image in to_pil(images)]))
        return self.vision(pixel_values=pixels.to(self._device, self.vision.dtype)).last_hidden_state

    def _text_states(self, texts: list[str], pictures: Float[Tensor, "b N W"]) -> Float[Tensor, "b D"]:
        """The state of the first token, [CLS]; BLIP's own [ENC] is not used here."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        states = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=pictures)
        return states.last_hidden_state[:, 0]


def _split(tensors: Mapping[str, Tensor], path: str) -> tuple[Tensors, Tensors, Tensors]:
    """The checkpoint's picture encoder, text encoder (under ``transformers``' names) and head.

    BLIP's contrastive projections and a buffer of positions, which no score uses, are dropped.
    """
    prefixes = ("vision_model.", "text_encoder.", "mlp.")
    names = {name: rename(name.removeprefix("blip.")) for name in tensors if not UNUSED.fullmatch(name)}
    refuse_mismatch(path, [], [name for name, new in names.items() if not new.startswith(prefixes)], [])
    vision, text, head = (
        {new.removeprefix(prefix): tensors[name] for name, new in names.items() if new.startswith(prefix)}
        for prefix in prefixes
    )
    return vision, text, head


def _vision_config(tensors: Tensors, path: str) -> Any:
    from transformers import BlipVisionConfig

    width, _, _, patch = _sizes(tensors, "embeddings.patch_embedding.weight", 4, path)
    _, positions, _ = _sizes(tensors, "embeddings.position_embedding", 3, path)
    inner, _ = _sizes(tensors, "encoder.layers.0.mlp.fc1.weight", 2, path)
    common = _common(tensors, width, inner, VISION_EPS)
    return BlipVisionConfig(**common, image_size=math.isqrt(positions - 1) * patch, patch_size=patch)


def _text_config(tensors: Tensors, path: str) -> Any:
    from transformers import BlipTextConfig

    words, width = _sizes(tensors, "embeddings.word_embeddings.weight", 2, path)
    positions, _ = _sizes(tensors, "embeddings.position_embeddings.weight", 2, path)
    inner, _ = _sizes(tensors, "encoder.layer.0.intermediate.dense.weight", 2, path)
    _, picture_width = _sizes(tensors, "encoder.layer.0.crossattention.self.key.weight", 2, path)
    return BlipTextConfig(
        **_common(tensors, width, inner, TEXT_EPS),
        vocab_size=words,
        encoder_hidden_size=picture_width,
        max_position_embeddings=positions,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id")),
        is_decoder=True,  # adds the cross-attention; attention stays bidirectional
    )


def _common(tensors: Tensors, width: int, inner: int, epsilon: float) -> dict[str, Any]:
    layers = [match[1] for name in tensors if (match := re.match(r"encoder\.layers?\.(\d+)\.", name))]
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 1 + max(map(int, layers)),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "layer_norm_eps": epsilon,
        "hidden_act": "gelu",
    }


def _sizes(tensors: Tensors, name: str, dimensions: int, path: str) -> tuple[int, ...]:
    refuse_mismatch(path, [] if name in tensors else [name], [], [])
    shape = tuple(tensors[name].shape)
    refuse_mismatch(path, [], [], [] if len(shape) == dimensions else [f"{name} {shape}"])
    return shape
