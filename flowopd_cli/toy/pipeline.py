"""The toy's diffusers pipeline: tiny SD3 transformer, tiny autoencoder, two tiny CLIP encoders, one tiny tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 14
ENCODER_WIDTH, HEAD = 64, 32
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
GEOMETRY = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": HEAD,
    "caption_projection_dim": 128,
    "joint_attention_dim": 2 * ENCODER_WIDTH,
    "pooled_projection_dim": 2 * ENCODER_WIDTH,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}


def vocabulary(texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A CLIP vocabulary and its merges: a word of the prompts is one token, any other text one token a letter.

    Merges grow from the end of a word to its front, so that no part of a code such as ``BRD`` merges into a word.
    """
    words = sorted({w for text in texts for w in re.findall(r"[a-z]+", re.sub(r'"[^"]*"', "", text.lower()))})
    symbols = [*"abcdefghijklmnopqrstuvwxyz0123456789\"'.,!?-"]
    vocab = symbols + [s + "</w>" for s in symbols]
    merges: list[tuple[str, str]] = []
    for word in words:
        tail = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            if (letter, tail) not in merges:
                merges.append((letter, tail))
                vocab.append(letter + tail)
            tail = letter + tail
    return {token: i for i, token in enumerate([*dict.fromkeys(vocab), BEGIN, END])}, merges


def tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """The tiny tokenizer of these texts."""
    vocab, merges = vocabulary(texts)
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS, **special)  # pyright: ignore[reportArgumentType]


def autoencoder() -> AutoencoderKL:
    """32 x 32 pixels to 8 x 8 latents of eight channels."""
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 48),
        "latent_channels": 8,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    }
    return AutoencoderKL(**options)


def text_encoder(vocabulary_size: int) -> CLIPTextModelWithProjection:
    """A two-layer CLIP text model."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=ENCODER_WIDTH,
            intermediate_size=4 * ENCODER_WIDTH,
            projection_dim=ENCODER_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary_size - 2,
            eos_token_id=vocabulary_size - 1,
            pad_token_id=vocabulary_size - 1,
        )
    )


def transformer(layers: int, heads: int, seed: int) -> SD3Transformer2DModel:
    """A fresh transformer of another depth and width."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"num_layers": layers, "num_attention_heads": heads, "caption_projection_dim": HEAD * heads}
    return SD3Transformer2DModel(**{**GEOMETRY, **size})


def grow(small: SD3Transformer2DModel, layers: int, seed: int) -> SD3Transformer2DModel:
    """A deeper transformer that computes what ``small`` does: its added blocks have gates of 0 at first.

    They stand before the last block, which has no output for the text.
    """
    grown = transformer(layers, small.config["num_attention_heads"], seed)
    last, depth = len(small.transformer_blocks) - 1, len(grown.transformer_blocks)
    if depth <= last + 1:
        raise ValueError(f"--layers: is {layers}, expected more than the {last + 1} blocks of the base that grows")
    gates = tuple(f"transformer_blocks.{block}.norm1" for block in range(last, depth - 1))  # and norm1_context
    state = {name: v.zero_() if name.startswith(gates) else v for name, v in grown.state_dict().items()}
    moved = {
        name.replace(f"transformer_blocks.{last}.", f"transformer_blocks.{depth - 1}."): value
        for name, value in small.state_dict().items()
    }
    grown.load_state_dict({**state, **moved})
    return grown


def assemble(texts: Iterable[str], seed: int) -> StableDiffusion3Pipeline:
    """The whole pipeline with fresh weights."""
    torch.manual_seed(seed)
    words = tokenizer(texts)
    parts: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(**GEOMETRY),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
        "vae": autoencoder(),
        "text_encoder": text_encoder(len(words)),
        "tokenizer": words,
        "text_encoder_2": text_encoder(len(words)),
        "tokenizer_2": words,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    return StableDiffusion3Pipeline(**parts)


def load(folder: Path) -> StableDiffusion3Pipeline:
    """An assembled pipeline from disk, in float32, to be trained further."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    for module in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.float()
    pipe.vae.eval().requires_grad_(False)
    return pipe
