"""Qwen3-VL as the judge of one picture: the probabilities of the first token of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.rewards.preference.clip import as_dtype, read, read_tokenizer, refuse_incomplete
from flowopd_cli.rewards.qwen_vl import CHAT_3, chat_inputs
from flowopd_cli.rewards.weights import pick_device

MODEL = "Qwen/Qwen3-VL-8B-Instruct@0c351dd01ed87e9c1b53cbc748cba10e6187ff3b"


def load_tokenizer(source: str, vocabulary: int) -> Any:
    """The tokenizer of a Qwen3-VL with a vocabulary of this size.

    Raises :class:`ArtifactError`: it cannot be read, or is not that model's.
    """
    from transformers import Qwen2Tokenizer

    return read_tokenizer(Qwen2Tokenizer, source, vocabulary)


def first_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The first token of each text: all that one generated token can show of it.

    Of " 4" it is the space alone, because Qwen's tokenizer splits digits off; the reference counts it too.
    """
    return [tokenizer.encode(text)[0] for text in texts]


class Qwen3VL:
    """The model with its tokenizer and its picture processor, in evaluation mode and without gradients."""

    def __init__(self, source: str = MODEL, *, dtype: str = "bfloat16", device: str = "auto") -> None:
        """``source`` is a local folder or a Hub id, ``repository@revision``.

        Raises :class:`ArtifactError`: there is no Qwen3-VL, or an incomplete one.
        """
        from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

        options = {"dtype": as_dtype(dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = read(Qwen3VLForConditionalGeneration, source, **options)
        refuse_incomplete(source, info)
        self._model = model.eval().requires_grad_(False).to(pick_device(device))
        self.tokenizer = load_tokenizer(source, model.config.text_config.vocab_size)
        self._processor = read(Qwen2VLImageProcessorPil, source)

    @torch.no_grad()
    def next_token(self, picture: Image.Image, text: str) -> Float[Tensor, " V"]:
        """Probability of each token as the first of the answer, float32 on the CPU.

        One picture and one text at a time, as in the reference: without padding no figure depends on a batch.
        """
        pictures = [self._resized(picture)]
        inputs = chat_inputs(self.tokenizer, self._processor, pictures, [text], chat=CHAT_3)
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        kinds = (inputs["input_ids"] == self._model.config.image_token_id).int()
        logits = self._model(**inputs, mm_token_type_ids=kinds, logits_to_keep=1, use_cache=False).logits
        return logits[0, -1].float().softmax(dim=-1).cpu()

    def _resized(self, picture: Image.Image) -> Image.Image:
        """The picture in the size that the model takes.

        By torch, whose filter on bytes is that of the reference's processor; PIL's differs by single levels.
        """
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        processor = self._processor
        limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
        size = smart_resize(picture.height, picture.width, processor.patch_size * processor.merge_size, **limits)
        if size == (picture.height, picture.width):
            return picture
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())
