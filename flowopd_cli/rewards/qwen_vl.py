"""Qwen's vision-language models: their inputs, chats with one picture each, and their greedy answers.

The processor of ``transformers`` would make the same inputs, but imports torchvision for its videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.rewards.compbench.detectors import load_complete
from flowopd_cli.rewards.preference.clip import as_dtype, read, read_tokenizer
from flowopd_cli.rewards.weights import pick_device

PLACE = "<|image_pad|>"
PICTURE = f"<|vision_start|>{PLACE}<|vision_end|>"
KINDS = ("qwen2_vl", "qwen2_5_vl")
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


def refuse_special_tokens(reward: str, tokenizer: Any, texts: Iterable[tuple[Prompt, str]]) -> None:
    """Refuse prompts with a text for the model that has special tokens, which it would read as pictures or turns.

    Raises :class:`PromptError`: a text has one.
    """
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for prompt, text in texts:
        for mark in marks:
            if mark in text:
                raise PromptError(f"{reward}: prompt {prompt.id!r} has {mark}, a token of the model's own; remove it")


class QwenVL:
    """A Qwen2-VL or Qwen2.5-VL that answers questions about pictures greedily, without gradients.

    Its other settings of generation, such as a penalty of repetitions, are those that come with its weights.
    """

    def __init__(self, source: str, dtype: str, device: str) -> None:
        """``source`` is a local folder or ``repository@revision``.

        Raises :class:`ArtifactError`: there is a model of another kind, an incomplete one, or none.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Tokenizer, Qwen2VLImageProcessorPil

        kind = read(AutoConfig, source).model_type
        if kind not in KINDS:
            kinds = " or ".join(KINDS)
            raise ArtifactError(f"{source}: a model of kind {kind}, not {kinds}: serve it, and use its endpoint")
        model = load_complete(AutoModelForImageTextToText, source)
        self.model = model.to(pick_device(device), as_dtype(dtype)).eval().requires_grad_(False)
        self.tokenizer = read_tokenizer(Qwen2Tokenizer, source, model.config.text_config.vocab_size)
        self.processor = read(Qwen2VLImageProcessorPil, source)
        settings = model.generation_config
        settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None

    @torch.no_grad()
    def answer(self, image: Image.Image, question: str, limit: int) -> tuple[str, bool]:
        """The answer of at most ``limit`` tokens, and whether that cut it off."""
        inputs = chat_inputs(self.tokenizer, self.processor, [image], [question])
        tensors = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        kinds = (tensors["input_ids"] == self.model.config.image_token_id).int()
        output = self.model.generate(**tensors, mm_token_type_ids=kinds, max_new_tokens=limit)
        answer = output[0, kinds.shape[1] :]
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text, len(answer) >= limit
