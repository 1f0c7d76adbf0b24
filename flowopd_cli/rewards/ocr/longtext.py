"""The text accuracy of LongText-Bench (Geng et al. 2025, X-Omni, arXiv 2507.22058), over any reader.

Accuracy is the share of the words to write, of Chinese the characters, that the text read has too, in any order: a
word that is to be written twice counts twice. The benchmark's figure is the pooled share over all pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.targets import parse_texts
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.ocr.endpoint import EndpointTextReader
from flowopd_cli.rewards.ocr.paddle import PaddleOptions
from flowopd_cli.rewards.ocr.qwen import QwenTextReader
from flowopd_cli.rewards.ocr.reading import Reading, TextReader
from flowopd_cli.rewards.ocr.reward import make_reader
from flowopd_cli.system.arguments import Options, OptionsOf

QWEN = "qwen2.5-vl"
REPORTED = 10  # missing words of a picture
_LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
_NO_WORD, _NO_CHARACTER = re.compile(rf"[^{_LETTERS}\s]"), re.compile(rf"[^{_LETTERS}]")
# What a reader writes for a picture without text, removed in this order. The reference lists "addCriterion" too, but
# does not remove it.
_NOTHING = ("No text recognized.", "\nNo text recognized.", "No text recognized.\n")


def words_of(text: str, language: str) -> list[str]:
    """The words that count, in lower case; of ``zh`` the characters, whose case counts. Other signs are left out."""
    if language == "zh":
        return list(_NO_CHARACTER.sub("", text))
    return _NO_WORD.sub("", text).lower().split()


def missing_words(expected: Sequence[str], text: str, language: str) -> list[str]:
    """The expected words that the text read lacks."""
    for nothing in _NOTHING:
        text = text.replace(nothing, "")
    return list((Counter(expected) - Counter(words_of(text, language))).elements())


def expected_words(prompt: Prompt) -> tuple[list[str], str]:
    """The words to write of a prompt, from ``metadata["text"]``, and its ``language``, ``en`` where it names none.

    Raises :class:`PromptError`: the metadata are not those of the benchmark, or there is no word to count.
    """
    place, language = f"prompt {prompt.id!r}", prompt.metadata.get("language", "en")
    if language not in ("en", "zh"):
        raise PromptError(f'{place}: "language" is en or zh, not {str(language)[:80]!r}')
    words = words_of(parse_texts(place, prompt.metadata), language)
    if not words:
        raise PromptError(f'{place}: "text" has no word to count, only signs')
    return words, language


class LongTextReward(Reward):
    """The reward ``longtext``: ``scores`` has the numbers of words ``matched`` and ``expected``.

    A picture that the reader fails on is invalid, not zero.
    """

    info = RewardInfo("longtext", "arXiv 2507.22058", 0.0, 1.0, license="Apache-2.0")

    def __init__(
        self,
        reader: Literal["qwen2.5-vl", "endpoint", "paddleocr", "rapidocr"] | TextReader = QWEN,
        **options: Annotated[Any, OptionsOf(QwenTextReader, EndpointTextReader, PaddleOptions)],
    ) -> None:
        """``reader`` is a name or a :class:`TextReader`; ``options`` are those of the named reader's constructor.

        Raises :class:`RewardError`: there is no such reader, or it cannot start.
        Raises :class:`ArtifactError`: its weights cannot be read.
        Raises :class:`MissingDependency`: its package is not installed.
        """
        self.reader = make_reader(reader, **options) if isinstance(reader, str) else reader
        self.engine = self.reader.name
        if reader == QWEN:
            defaults = Options.of(QwenTextReader).named
            changed = [n for n, value in options.items() if n != "device" and value != defaults[n].default]
            settings = ", ".join(f"{name}={options[name]}" for name in changed)
            note = f"not as the reference: {settings}" if changed else ""
        else:
            note = f"read by {self.engine}, the reference by Qwen2.5-VL-7B"
        self.info = replace(self.info, exact=not note, note=note)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without texts to write."""
        for prompt in prompts:
            expected_words(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Read B images."""
        texts = [expected_words(prompt) for prompt in prompts]
        details = [self._score(*row, reading) for row, reading in zip(texts, self.reader(images), strict=True)]
        valid = torch.tensor(["error" not in detail for detail in details])
        expected = torch.tensor([float(len(words)) for words, _ in texts])
        matched = torch.tensor([float(detail["matched"]) for detail in details])
        scores = {"matched": matched, "expected": expected}
        columns = {name: torch.where(valid, column, torch.nan) for name, column in scores.items()}
        return RewardResult(torch.where(valid, matched / expected, torch.nan), columns, valid, tuple(details))

    def _score(self, expected: Sequence[str], language: str, reading: Reading) -> Mapping[str, Any]:
        detail = {"read": [line.text for line in reading.lines], "reader": self.engine}
        if reading.error:
            return {**detail, "matched": 0, "error": reading.error}
        missing = missing_words(expected, "\n".join(line.text for line in reading.lines), language)
        return {**detail, "matched": len(expected) - len(missing), "missing": missing[:REPORTED]}
