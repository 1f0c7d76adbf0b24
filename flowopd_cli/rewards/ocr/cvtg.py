"""Word accuracy and NED of CVTG-2K (Du et al. 2025, TextCrafter, arXiv 2503.23461), over any reader.

The words to write are those in single quotes, in lower case. Accuracy is the share of them that were read; NED is the
mean of their similarities ``1 - edits / longer`` with the closest word read. Both are pooled over all pictures.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.ocr.paddle import PaddleOptions
from flowopd_cli.rewards.ocr.reading import TextReader
from flowopd_cli.rewards.ocr.reward import levenshtein, make_reader
from flowopd_cli.system.arguments import OptionsOf

EPSILON = 1e-5  # the reference adds it to the longer word's length


def quoted_words(prompt: Prompt) -> list[str]:
    """The words in single quotes; :class:`PromptError` without one. An apostrophe opens a quotation too."""
    quotations: list[str] = re.findall(r"'(.*?)'", prompt.text)
    words = " ".join(quotations).lower().split()
    if not words:
        raise PromptError(f"prompt {prompt.id!r}: no text in single quotes to render: {prompt.text[:80]!r}")
    return words


def similarity(word: str, read: Sequence[str]) -> float:
    """The similarity of a word with the closest one read, as ``difflib`` finds it; ``read`` is not empty."""
    closest = difflib.get_close_matches(word, read, n=1, cutoff=0)[0]
    return 1 - levenshtein(word, closest) / (max(len(word), len(closest)) + EPSILON)


class CVTGReward(Reward):
    """The reward ``cvtg``: ``scores`` has the numbers of words ``correct`` and ``expected``, and ``ned``.

    A picture that the reader fails on is invalid, not zero.
    """

    info = RewardInfo(
        "cvtg",
        "arXiv 2503.23461",
        0.0,
        1.0,
        license="Apache-2.0",
        extra="ocr",
        exact=False,
        note="exact formula; published scores are of PaddleOCR 2, which also turns lines: closest with models=PP-OCRv4",
    )

    def __init__(
        self,
        reader: Literal["auto", "paddleocr", "rapidocr"] | TextReader = "auto",
        **options: Annotated[Any, OptionsOf(PaddleOptions)],
    ) -> None:
        """``reader`` is a name or a :class:`TextReader`; ``options`` are those of the named reader's constructor.

        Raises :class:`RewardError`: there is no such reader, or it cannot start.
        Raises :class:`MissingDependency`: its package is not installed.
        """
        self.reader = make_reader(reader, **options) if isinstance(reader, str) else reader
        self.engine = self.reader.name

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without quoted words."""
        for prompt in prompts:
            quoted_words(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Read B images."""
        texts, readings = [quoted_words(prompt) for prompt in prompts], self.reader(images)
        details: list[dict[str, Any]] = []
        rows: list[tuple[float, float, float]] = []
        for words, reading in zip(texts, readings, strict=True):
            read = [word for line in reading.lines for word in line.text.lower().split()]
            correct = sum(word in read for word in words)
            rows.append((correct, len(words), sum(similarity(word, read or [""]) for word in words) / len(words)))
            error = {"error": reading.error} if reading.error else {}
            details.append({"expected": words, "read": read, "reader": self.engine} | error)
        valid = torch.tensor([reading.error is None for reading in readings])
        columns = torch.where(valid[:, None], torch.tensor(rows).view(-1, 3), torch.nan).unbind(dim=1)
        scores: dict[str, Tensor] = dict(zip(("correct", "expected", "ned"), columns, strict=True))
        return RewardResult(scores["correct"] / scores["expected"], scores, valid, tuple(details))
