"""A tiny random Lumina-Image-2 pipeline."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from support.tiny import DECODER, TEXT_WIDTH, autoencoder
from support.tiny_sana import tokenizer
from transformers import Gemma2Config, Gemma2Model

SEQUENCE = 8


def assemble_lumina2(seed: int, **scheduler) -> Lumina2Pipeline:
    """A Lumina-Image-2 pipeline, to whose tokenizer all that precedes a prompt is one token.

    Its latents have an eighth of a picture's side; the weights are a function of ``seed``. ``scheduler`` changes
    arguments of its scheduler.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        pipeline = Lumina2Pipeline(
            transformer=Lumina2Transformer2DModel(
                sample_size=4,
                in_channels=4,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=4,
                num_kv_heads=2,
                multiple_of=16,
                axes_dim_rope=(2, 2, 4),
                axes_lens=(64, 16, 16),
                cap_feat_dim=TEXT_WIDTH,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
            vae=autoencoder(4, 0.3611, 0.1159),
            text_encoder=Gemma2Model(Gemma2Config(vocab_size=len(words) + 1, **DECODER)),
            tokenizer=words,
        )
        words.add_tokens([f"{pipeline.system_prompt} <Prompt Start> "])
        return pipeline
