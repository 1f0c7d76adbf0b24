"""A tiny random FLUX.2-klein pipeline."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from support.qwen_words import tokenizer
from support.tiny import BLOCKS, DECODER, TEXT_WIDTH
from transformers import Qwen3Config, Qwen3ForCausalLM

LAYERS = 28  # the pipeline reads the states after 9, 18 and 27 of them


def assemble_klein(seed: int, *, distilled: bool = False, **geometry) -> Flux2KleinPipeline:
    """A FLUX.2-klein pipeline, its latents a quarter of a picture wide; the weights are a function of ``seed``.

    ``geometry`` changes arguments of its transformer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        config = {
            **BLOCKS,
            "in_channels": 16,
            "num_single_layers": 2,
            "joint_attention_dim": 3 * TEXT_WIDTH,
            "axes_dims_rope": (4,) * 4,
            "guidance_embeds": False,
        }
        pipeline = Flux2KleinPipeline(
            transformer=Flux2Transformer2DModel(**{**config, **geometry}),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=AutoencoderKLFlux2(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8,) * 3,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=16,
            ),
            text_encoder=Qwen3ForCausalLM(
                Qwen3Config(vocab_size=len(words), initializer_range=0.2, **{**DECODER, "num_hidden_layers": LAYERS})
            ),
            tokenizer=words,
            is_distilled=distilled,
        )
        torch.nn.init.normal_(pipeline.vae.bn.running_mean)
        torch.nn.init.uniform_(pipeline.vae.bn.running_var, 0.5, 2.0)
        return pipeline
