"""Tiny random pipelines whose text encoder is of Qwen's kind."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from support.tiny import DECODER, TEXT_WIDTH, autoencoder
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.convert_slow_tokenizer import bytes_to_unicode

MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEQUENCE = 40


def tokenizer() -> Qwen2Tokenizer:
    """A token for every byte, and Qwen's marks of a chat."""
    letters = [*bytes_to_unicode().values(), *MARKS]
    words = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    words.add_special_tokens({"additional_special_tokens": list(MARKS)})
    words.chat_template = TEMPLATE
    return words


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
