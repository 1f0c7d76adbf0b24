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
# What the chat template of Qwen3-VL makes of a picture and a question, and that of Qwen2-VL and Qwen2.5-VL.
CHAT_3 = f"<|im_start|>user\n{PICTURE}{{question}}<|im_end|>\n<|im_start|>assistant\n"
CHAT = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{CHAT_3}"


def chat_inputs(
    tokenizer: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    chat: str = CHAT,
    pixels: int | None = None,
) -> Mapping[str, Tensor]:
    """The inputs for B pictures with a question each.

    ``input_ids`` and ``attention_mask`` ``(B, L)``, ``pixel_values`` ``(patches, D)``, ``image_grid_thw`` ``(B, 3)``.
    ``chat`` is what the model's chat template makes of them. ``pixels`` is the number of pixels that a picture is
    resized to, up to its multiples of a patch; ``None`` leaves it to the processor's own limits.
    """
    size = {} if pixels is None else {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
    pictures = processor(list(images), return_tensors="pt", **size)
    counts = (pictures["image_grid_thw"].prod(dim=-1) // processor.merge_size**2).tolist()
    chats = [
        chat.replace(PLACE, PLACE * count).replace("{question}", question)
        for count, question in zip(counts, questions, strict=True)
    ]
    tokens = tokenizer(chats, padding=True, padding_side="right", return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return {name: tokens[name] for name in names} | {n: pictures[n] for n in ("pixel_values", "image_grid_thw")}
