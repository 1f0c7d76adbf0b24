"""Tiny random pipelines whose text encoder is of Qwen's kind."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from support.qwen_words import tokenizer
from support.tiny import BLOCKS, DECODER, TEXT_WIDTH, autoencoder
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3Model

SEQUENCE = 40
# Qwen-Image's pipeline drops 34 tokens before a prompt: its instruction, here one token of many letters and 33 more.
INSTRUCTION = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)


def assemble_z_image(seed: int) -> ZImagePipeline:
    """A Z-Image pipeline; its weights are a function of ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        pipeline = ZImagePipeline(
            transformer=ZImageTransformer2DModel(
                in_channels=4,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=TEXT_WIDTH,
                axes_dims=(4, 6, 6),
                axes_lens=(256, 32, 32),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=autoencoder(3, 0.3611, 0.1159),
            text_encoder=Qwen3Model(Qwen3Config(vocab_size=len(words), **DECODER)),
            tokenizer=words,
        )
        for name, weight in pipeline.transformer.named_parameters():
            if name.endswith("pad_token"):
                torch.nn.init.normal_(weight)
        return pipeline


def assemble_qwen_image(seed: int, **geometry) -> QwenImagePipeline:
    """A Qwen-Image pipeline, whose latents have a quarter of a picture's side; its weights are a function of ``seed``.

    ``geometry`` changes arguments of its transformer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer(INSTRUCTION[:-17])
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        decoder = {name: value for name, value in DECODER.items() if name != "head_dim"}
        encoder = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={**decoder, "vocab_size": len(words), "rope_parameters": rope}, vision_config=vision
            )
        )
        return QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                **BLOCKS,
                in_channels=16,
                out_channels=4,
                joint_attention_dim=TEXT_WIDTH,
                axes_dims_rope=(4, 6, 6),
                **geometry,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[-0.7, 0.4, 0.1, -0.2],
                latents_std=[2.8, 1.4, 0.6, 2.0],
            ),
            text_encoder=encoder,
            tokenizer=words,
        )
