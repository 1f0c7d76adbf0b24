"""Inputs of Qwen's vision-language models: chats with one picture each, and the patches of the pictures.

The processor of ``transformers`` would do the same, but imports torchvision for its videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

PLACE = "<|image_pad|>"
PICTURE = f"<|vision_start|>{PLACE}<|vision_end|>"
# What the chat template of Qwen2-VL and Qwen2.5-VL makes of a picture and a question.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{PICTURE}{{question}}<|im_end|>\n<|im_start|>assistant\n"
)


def chat_inputs(
    tokenizer: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    pixels: int | None = None,
    padding: str = "right",
) -> Mapping[str, Tensor]:
    """The inputs for B pictures with a question each.

    ``input_ids`` and ``attention_mask`` ``(B, L)``, ``pixel_values`` ``(patches, D)``, ``image_grid_thw`` ``(B, 3)``.
    ``pixels`` is the number of pixels that a picture is resized to, up to its multiples of a patch; ``None`` leaves it
    to the processor's own limits.
    """
    size = {} if pixels is None else {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
    pictures = processor(list(images), return_tensors="pt", **size)
    counts = (pictures["image_grid_thw"].prod(dim=-1) // processor.merge_size**2).tolist()
    chats = [
        CHAT.replace(PLACE, PLACE * count).replace("{question}", question)
        for count, question in zip(counts, questions, strict=True)
    ]
    tokens = tokenizer(chats, padding=True, padding_side=padding, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return {name: tokens[name] for name in names} | {n: pictures[n] for n in ("pixel_values", "image_grid_thw")}
