"""A tiny random SANA pipeline."""

import inspect

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from support.tiny import DECODER, TEXT_WIDTH
from tokenizers.processors import TemplateProcessing
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

SEQUENCE = 8
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


def tokenizer() -> GemmaTokenizer:
    """A token for every printable letter, after Gemma's mark."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "\n", *map(chr, range(33, 127))]
    words = GemmaTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return words


def assemble_sana(seed: int, **geometry) -> SanaPipeline:
    """A SANA pipeline, to whose tokenizer the instruction before a prompt is one token and the last letters.

    Each of its thousand letters as a token would take seconds. The latents have an eighth of a picture's side; the
    weights are a function of ``seed``. ``geometry`` changes arguments of its transformer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        words.add_tokens(["\n".join(INSTRUCTION)[:-12]])
        sides = {
            "block_types": (*("ResBlock",) * 3, "EfficientViTBlock"),
            "block_out_channels": (8,) * 4,
            "qkv_multiscales": ((), (), (), (5,)),
            "layers_per_block": (1,) * 4,
        }
        return SanaPipeline(
            transformer=SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=16,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=TEXT_WIDTH,
                sample_size=4,
                **geometry,
            ),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()},
                upsample_block_type="interpolate",
                downsample_block_type="conv",
                scaling_factor=0.41407,
            ),
            text_encoder=Gemma2Model(Gemma2Config(vocab_size=len(words), **DECODER)),
            tokenizer=words,
        )
