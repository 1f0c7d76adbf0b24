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
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import as_dtype, read, split_revision
from flowopd_cli.rewards.preference.scoring import (
    LinearStack,
    assemble,
    centre_square,
    clip_pixels,
    declared,
    refuse_words,
    scalar_result,
    weights_file,
)
from flowopd_cli.rewards.weights import load_tensors, pick_device, refuse_mismatch, weights_id

MODEL = "zai-org/ImageReward@5736be03b2652728fb87788c9797b0570450ab72"
FILE = "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
TOKENS = 35
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTH = 64  # of every BLIP's attention heads
VISION_EPS, TEXT_EPS = 1e-6, 1e-12
UNUSED = re.compile(r"blip\.((vision|text)_proj\..+|text_encoder\.embeddings\.position_ids)")
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
VISION_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+?)(?:\.(weight|bias))?")


class ImageRewardReward(Reward):
    """About -2 to 2, higher is better: 0 is the mean and 1 the deviation over the reference's own data."""

    info = RewardInfo(
        "imagereward",
        "arXiv 2304.05977",
        -2.0,
        2.0,
        license="Apache-2.0",
        note="range as usually seen, not a bound",
    )

    def __init__(
        self,
        source: str = MODEL,
        tokenizer: str = TOKENIZER,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` has ``ImageReward.pt`` (or is it), ``tokenizer`` the words of BERT uncased.

        Either is a local folder or ``repository@revision``. Sizes are those of the checkpoint's tensors.

        Raises:
            ArtifactError: one of them cannot be read, or its names or shapes are not those of ImageReward.
        """
        from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

        path, digest = weights_file(source, FILE)
        what, kind = str(path), as_dtype(dtype)
        vision, text, head = split_parts(load_tensors(path, digest), what)
        vision_config, text_config = vision_shape(vision, what), text_shape(text, what)
        self._device = pick_device(device)
        self.vision = assemble(BlipVisionModel, vision_config, vision, what, kind).to(self._device)
        self.text = assemble(BlipTextModel, text_config, text, what, kind, add_pooling_layer=False)
        self.text = self.text.to(self._device)
        self.head = LinearStack(head, text_config.hidden_size, what)
        self.words = read(BertTokenizer, *split_revision(tokenizer))
        refuse_words(self.words, text_config.vocab_size, tokenizer)
        self.side, self.source, self._batch = vision_config.image_size, source, batch
        self.weights = {"checkpoint": weights_id(source), "tokenizer": weights_id(tokenizer), "dtype": dtype}
        self.info = declared(self.info, source == MODEL and tokenizer == TOKENIZER, dtype)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        parts = [torch.zeros(0)]
        for start in range(0, len(prompts), self._batch):
            rows = slice(start, start + self._batch)
            seen = self._see(images[rows])
            parts.append(self.head(self._read([prompt.text for prompt in prompts[rows]], seen)).cpu())
        total = (torch.cat(parts) - MEAN) / DEVIATION
        return scalar_result(total, {}, prompts, self.source)

    def _see(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b N W"]:
        pixels = clip_pixels([centre_square(image, self.side) for image in to_pil(images)])
        return self.vision(pixel_values=pixels.to(self._device, self.vision.dtype)).last_hidden_state

    def _read(self, texts: list[str], seen: Float[Tensor, "b N W"]) -> Float[Tensor, "b D"]:
        """The state of the first token, [CLS]: BLIP's own [ENC] is not used here."""
        tokens = self.words(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        return self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state[:, 0]


Tensors = dict[str, Tensor]


def split_parts(tensors: Mapping[str, Tensor], what: str) -> tuple[Tensors, Tensors, Tensors]:
    """The checkpoint's picture encoder, text encoder (under ``transformers``' names) and head.

    BLIP's contrastive projections and a buffer of positions, which no score uses, are dropped.

    Raises:
        ArtifactError: a name that belongs to none of them.
    """
    parts: dict[str, Tensors] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
    unexpected = []
    for name, value in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if UNUSED.fullmatch(name):
            continue
        if prefix is None:
            unexpected.append(name)
        else:
            parts[prefix][name.removeprefix(prefix)] = value
    refuse_mismatch(what, [], unexpected, [])
    vision, text, head = parts.values()
    return {vision_name(name): value for name, value in vision.items()}, text, head


def vision_name(name: str) -> str:
    """BLIP's name of a tensor of its picture encoder in ``BlipVisionModel``; an unknown one is returned as it is."""
    block, inner, kind = re.fullmatch(VISION_NAME, name).groups()  # type: ignore[union-attr]
    if inner not in VISION:
        return name
    return f"encoder.layers.{block}." * (block is not None) + VISION[inner] + f".{kind}" * (kind is not None)


def vision_shape(tensors: Mapping[str, Tensor], what: str) -> Any:
    """The configuration of the picture encoder that has tensors of these sizes.

    Raises:
        ArtifactError: one that tells a size is missing or misshaped.
    """
    from transformers import BlipVisionConfig

    width, _, _, patch = _sizes(tensors, "embeddings.patch_embedding.weight", 4, what)
    _, positions, _ = _sizes(tensors, "embeddings.position_embedding", 3, what)
    inner, _ = _sizes(tensors, "encoder.layers.0.mlp.fc1.weight", 2, what)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_layers(tensors, r"encoder\.layers\.(\d+)\..*"),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
        layer_norm_eps=VISION_EPS,
        hidden_act="gelu",
    )


def text_shape(tensors: Mapping[str, Tensor], what: str) -> Any:
    """Likewise of the text encoder.

    Raises:
        ArtifactError: one that tells a size is missing or misshaped.
    """
    from transformers import BlipTextConfig

    words, width = _sizes(tensors, "embeddings.word_embeddings.weight", 2, what)
    positions, _ = _sizes(tensors, "embeddings.position_embeddings.weight", 2, what)
    inner, _ = _sizes(tensors, "encoder.layer.0.intermediate.dense.weight", 2, what)
    _, seen = _sizes(tensors, "encoder.layer.0.crossattention.self.key.weight", 2, what)
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=seen,
        intermediate_size=inner,
        num_hidden_layers=_layers(tensors, r"encoder\.layer\.(\d+)\..*"),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=positions,
        layer_norm_eps=TEXT_EPS,
        hidden_act="gelu",
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
        is_decoder=True,  # gives its layers their cross-attention; it still reads both ways
    )


def _sizes(tensors: Mapping[str, Tensor], name: str, dimensions: int, what: str) -> tuple[int, ...]:
    refuse_mismatch(what, [] if name in tensors else [name], [], [])
    shape = tuple(tensors[name].shape)
    refuse_mismatch(what, [], [], [] if len(shape) == dimensions else [f"{name} {shape}"])
    return shape


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    matches = (re.fullmatch(pattern, name) for name in tensors)
    return 1 + max(int(match[1]) for match in matches if match)
