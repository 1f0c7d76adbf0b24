"""Weights of BLIP-VQA: the authors' checkpoint or a converted folder, with the official settings.

Source: Li et al. 2022, arXiv 2201.12086 (BSD-3-Clause). The official code differs from the defaults of ``transformers``
in the picture grid (480), in the picture encoder's LayerNorm epsilon (1e-6) and in the text models' heads (12).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.preference.clip import read, refuse_incomplete
from flowopd_cli.rewards.preference.scoring import assemble
from flowopd_cli.rewards.weights import download, load_tensors, split_digest

CHECKPOINT = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth"
TOKENIZER = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
GRID, EPSILON, HEADS = 480, 1e-6, 12
HUB_GRID = 384
# Original names to those of ``BlipForQuestionAnswering``; the text models keep theirs.
RENAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
)
# A checkpoint may leave these out, because the original ties them.
TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}


def load_blip(source: str) -> Any:
    """A ``BlipForQuestionAnswering`` with the official settings: the authors' file or URL, or a folder or Hub id.

    Raises :class:`ArtifactError`: it is missing, or not a BLIP-VQA model with every weight.
    """
    from transformers import BlipConfig, BlipForQuestionAnswering

    if _is_original(source):
        name, digest = split_digest(source)
        remote = name.startswith(("http://", "https://"))
        tensors = load_tensors(download(name, sha256=digest) if remote else name, digest, name)
        config = BlipConfig(**original_config(tensors))
        return assemble(BlipForQuestionAnswering, config, convert(tensors), source, torch.float32)
    config = read(BlipConfig, source)
    config.vision_config.layer_norm_eps = EPSILON
    config.text_config.num_attention_heads = HEADS
    model, info = read(
        BlipForQuestionAnswering, source, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_incomplete(source, info)
    return model


def tokenizer_source(source: str) -> str:
    """The tokenizer's place: the folder itself, that of the file, or BERT's on the Hub."""
    if not _is_original(source):
        return source
    folder = Path(split_digest(source)[0]).parent
    return str(folder) if any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")) else TOKENIZER


def rename(name: str) -> str:
    """A tensor's name in ``transformers`` from its name in the original checkpoint."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original checkpoint under the names of ``BlipForQuestionAnswering``; index buffers are dropped."""
    named = {rename(name): value for name, value in tensors.items() if not name.endswith(".position_ids")}
    return {name: named[source] for name, source in TIED.items() if source in named} | named


def original_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an original checkpoint, read off its tensors, with the official settings.

    Raises :class:`ArtifactError`: tensors that every BLIP-VQA checkpoint has are missing.
    """
    try:
        table, patch = tensors["visual_encoder.pos_embed"], tensors["visual_encoder.patch_embed.proj.weight"]
        words = tensors["text_encoder.embeddings.word_embeddings.weight"]
        places = tensors["text_encoder.embeddings.position_embeddings.weight"]
        wide = tensors["visual_encoder.blocks.0.mlp.fc1.weight"]
        inner = tensors["text_encoder.encoder.layer.0.intermediate.dense.weight"]
    except KeyError as error:
        raise ArtifactError(f"not a BLIP-VQA checkpoint: it has no tensor {error}") from error
    vision = {
        "hidden_size": table.shape[-1],
        "intermediate_size": wide.shape[0],
        "num_hidden_layers": _depth(tensors, "visual_encoder.blocks."),
        "num_attention_heads": 16 if table.shape[-1] == 1024 else HEADS,
        "image_size": math.isqrt(table.shape[1] - 1) * patch.shape[-1],
        "patch_size": patch.shape[-1],
        "layer_norm_eps": EPSILON,
    }
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "encoder_hidden_size": table.shape[-1],
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": _depth(tensors, "text_encoder.encoder.layer."),
        "num_attention_heads": HEADS,
        "max_position_embeddings": places.shape[0],
        "tie_word_embeddings": False,
    }
    return {"vision_config": vision, "text_config": text, "tie_word_embeddings": False}


def _is_original(source: str) -> bool:
    return split_digest(source)[0].endswith((".pth", ".pt", ".safetensors"))


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix))
