"""The text reader of LongText-Bench: Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) is asked for the text in a picture.

Question, picture size and generation are those of the benchmark's script (arXiv 2507.22058, Apache-2.0), one picture at
a time. Decoding is greedy; the script samples at a temperature near zero, which differs where two tokens tie.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.qwen_vl import QwenVL
from flowopd_cli.rewards.weights import weights_id

WEIGHTS = "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5"
QUESTION = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously mentioned "
    "content. If no text is recognized, please reply with 'No text recognized'."
)
MAX_TOKENS = 1024


class QwenTextReader:
    """Reads a picture as one text."""

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
        self._model, self._limit = QwenVL(source, dtype, device), max_tokens
        self.name = f"qwen2.5-vl/{weights_id(source)}/{dtype}"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The text of each RGB image in [0, 1], as one line of confidence 1."""
        texts = (self._model.answer(picture, QUESTION, self._limit)[0] for picture in to_pil(images))
        return [Reading((Line(text, 1.0),)) for text in texts]
