"""Text rendering: the OCR accuracy of Flow-GRPO (arXiv 2505.05470), over any reader.

Both strings lose their spaces and their case; ``score = 1 - min(d, n) / n`` with n the target's length and d the
edit distance, or 0 when the target occurs in what was read. ``exact`` has no such substring rule. The formula is
that of the reference; the figures are those of the reader, whose name stands beside every score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.prompts.files import target
from flowopd_cli.rewards.base import Reward, RewardInfo


class Line(NamedTuple):
    """One line of text with the reader's confidence in [0, 1]."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Reading:
    """The lines of one picture in reading order; ``error`` says why there is no reading at all."""

    lines: tuple[Line, ...] = ()
    error: str | None = None


class TextReader(Protocol):
    """Reads text from pictures. ``name`` goes into every report: scores of two engines are not comparable."""

    name: str

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The lines of each RGB picture in [0, 1]."""
        ...


class OCRScore(NamedTuple):
    """``score`` with the substring rule, ``exact`` match, ``cer`` (edits per target letter), ``ned`` similarity."""

    score: float
    exact: float
    cer: float
    ned: float


def target_of(prompt: Prompt) -> str:
    """What a prompt wants written: ``metadata["target"]``, else the text between its first two double quotes.

    Raises:
        PromptError: neither is there, or it is no text that could be written.
    """
    wanted = target(prompt.text, prompt.metadata)
    if wanted is None:
        raise PromptError(f"prompt {prompt.id!r}: no text in double quotes to write: {prompt.text[:80]!r}")
    return wanted


def normalize(text: str) -> str:
    """Without spaces, in lower case."""
    return text.replace(" ", "").lower()


def levenshtein(a: str, b: str) -> int:
    """Least number of insertions, deletions and substitutions from ``a`` to ``b``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def score_text(target: str, lines: Sequence[Line]) -> OCRScore:
    """All figures of one picture; lines without confidence are ignored."""
    wanted = normalize(target)
    read = normalize("".join(line.text for line in lines if line.confidence > 0))
    edits = levenshtein(wanted, read)
    counted = 0 if wanted in read else min(edits, len(wanted))
    return OCRScore(
        score=1 - counted / len(wanted),
        exact=float(wanted == read),
        cer=edits / len(wanted),
        ned=1 - edits / max(len(wanted), len(read)),
    )


class OCRReward(Reward):
    """The reward ``ocr``. A picture that the reader could not open is invalid, not zero."""

    info = RewardInfo(
        "ocr",
        "arXiv 2505.05470",
        0.0,
        1.0,
        license="Apache-2.0",
        extra="ocr",
        exact=False,
        note="exact formula; published scores were read by PaddleOCR 2.9.1: closest with models=PP-OCRv4",
    )

    def __init__(self, reader: str | TextReader = "auto", **options: Any) -> None:
        """``reader`` is a name (``auto``, ``paddleocr``, ``rapidocr``, ``rapidocr-band``) or a reader of your own.

        ``options`` are those of the named reader's constructor.

        Raises:
            RewardError: there is no such reader, or it cannot start.
            MissingDependency: its package is not installed.
        """
        if isinstance(reader, str):
            from flowopd_cli.rewards.ocr.rapidocr import make_reader

            reader = make_reader(reader, **options)
        elif options:
            raise RewardError(f"ocr: {', '.join(options)}: options are for a reader that is named, not for a made one")
        self.reader, self.engine = reader, reader.name

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that quote nothing.

        Raises:
            PromptError: a prompt without a target.
        """
        for prompt in prompts:
            target_of(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Read B pictures: ``scores`` has ``score``, ``exact``, ``cer`` and ``ned``."""
        targets = [target_of(prompt) for prompt in prompts]
        readings = self.reader(images)
        rows = [score_text(target, reading.lines) for target, reading in zip(targets, readings, strict=True)]
        valid = torch.tensor([reading.error is None for reading in readings])
        columns = {
            name: torch.where(valid, torch.tensor([getattr(row, name) for row in rows]).float(), torch.nan)
            for name in OCRScore._fields
        }
        details: list[dict[str, Any]] = [
            {"target": target, "read": [line.text for line in reading.lines], "reader": self.reader.name}
            | ({"error": reading.error} if reading.error else {})
            for target, reading in zip(targets, readings, strict=True)
        ]
        return RewardResult(columns["score"], columns, valid, tuple(details))
