"""The text reader of LongText-Bench: Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) is asked for the text in a picture.

Question, picture size and generation are those of the benchmark's script (arXiv 2507.22058, Apache-2.0), one picture at
a time. Decoding is greedy; the script samples at a temperature near zero, which differs where two tokens tie.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.rewards.compbench.detectors import load_complete
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import as_dtype, read, read_tokenizer
from flowopd_cli.rewards.qwen_vl import chat_inputs
from flowopd_cli.rewards.weights import pick_device, weights_id

WEIGHTS = "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5"
QUESTION = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously mentioned "
    "content. If no text is recognized, please reply with 'No text recognized'."
)
MAX_TOKENS = 1024


class QwenTextReader:
    """Reads a picture as one text, without gradients."""

    def __init__(
        self,
        source: str = WEIGHTS,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        device: str = "auto",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """``source`` is a local folder or a Hub id, ``repository@revision``; a text ends after ``max_tokens``.

        Raises :class:`ArtifactError`: there is no Qwen2.5-VL, or an incomplete one.
        """
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLImageProcessorPil

        model = load_complete(Qwen2_5_VLForConditionalGeneration, source)
        self._model = model.to(pick_device(device), as_dtype(dtype)).eval().requires_grad_(False)
        self._tokenizer = read_tokenizer(Qwen2Tokenizer, source, model.config.text_config.vocab_size)
        self._processor = read(Qwen2VLImageProcessorPil, source)
        settings = model.generation_config
        settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
        settings.max_new_tokens = max_tokens
        self.name = f"qwen2.5-vl/{weights_id(source)}/{dtype}"

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The text of each RGB image in [0, 1], as one line of confidence 1."""
        return [Reading((Line(self._read(picture), 1.0),)) for picture in to_pil(images)]

    def _read(self, picture: Image.Image) -> str:
        inputs = chat_inputs(self._tokenizer, self._processor, [picture], [QUESTION])
        tensors = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        kinds = (tensors["input_ids"] == self._model.config.image_token_id).int()
        answer = self._model.generate(**tensors, mm_token_type_ids=kinds)[0, inputs["input_ids"].shape[1] :]
        return self._tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
