"""A random FLUX pipeline of a few thousand weights, with guidance as an input of its network or without."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from support.tiny import TEXT_WIDTH, TEXTS, autoencoder, clip_config
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from flowopd_cli.toy.pipeline import tokenizer

RESOLUTION = 16
SEQUENCE = 6


def t5_tokenizer() -> T5Tokenizer:
    """A token for every letter."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789\"',."
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=words, extra_ids=0)


def t5(words: int) -> T5EncoderModel:
    """A T5 encoder of two layers."""
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    return T5EncoderModel(T5Config(vocab_size=words, is_encoder_decoder=False, **sizes))


def transformer(guidance: bool = True) -> FluxTransformer2DModel:
    """Two joint blocks and two of one stream, of width 32."""
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def assemble(seed: int, *, guidance: bool = True) -> FluxPipeline:
    """A whole pipeline; the weights are a function of ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words, letters = tokenizer(TEXTS), t5_tokenizer()
        return FluxPipeline(
            transformer=transformer(guidance),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=autoencoder(3, 0.3611, 0.1159),
            text_encoder=CLIPTextModel(clip_config(len(words))),
            tokenizer=words,
            text_encoder_2=t5(len(letters)),
            tokenizer_2=letters,
        )
