"""Text rendering: the OCR accuracy of Flow-GRPO (arXiv 2505.05470), over any reader.

Spaces and case are ignored; ``score = 1 - min(d, n) / n`` with n the target's length and d the edit distance, taken as
0 when the text read contains the target. ``exact`` has no such substring rule. The formula is that of the reference;
scores depend on the reader, which reports therefore name.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import ArtifactError, MissingDependency, RewardError
from flowopd_cli.prompts.targets import parse_target
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.ocr.endpoint import EndpointTextReader
from flowopd_cli.rewards.ocr.paddle import PaddleOptions, PaddleTextReader
from flowopd_cli.rewards.ocr.qwen import QwenTextReader
from flowopd_cli.rewards.ocr.rapidocr import RapidPageReader, RapidTextReader
from flowopd_cli.rewards.ocr.reading import Line, TextReader
from flowopd_cli.system.arguments import Options, OptionsOf

READERS: Mapping[str, Callable[..., TextReader]] = {
    "paddleocr": PaddleTextReader,
    "rapidocr": RapidPageReader,
    "rapidocr-band": RapidTextReader,
    "qwen2.5-vl": QwenTextReader,
    "endpoint": EndpointTextReader,
}
OPTIONS = {**READERS, "paddleocr": PaddleOptions}
log = logging.getLogger("flowopd.rewards")


class OCRScore(NamedTuple):
    """``score`` with the substring rule, ``exact`` match, ``cer`` (edits per target letter), ``ned`` similarity."""

    score: float
    exact: float
    cer: float
    ned: float


def target_of(prompt: Prompt) -> str:
    """The text to render: ``metadata["target"]``, else the prompt's first quotation; ``PromptError`` without one."""
    return parse_target(f"prompt {prompt.id!r}", prompt.text, prompt.metadata)


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
    """All scores of one image; lines without confidence are ignored."""
    expected = normalize(target)
    read = normalize("".join(line.text for line in lines if line.confidence > 0))
    edits = levenshtein(expected, read)
    penalty = 0 if expected in read else min(edits, len(expected))
    return OCRScore(
        score=1 - penalty / len(expected),
        exact=float(expected == read),
        cer=edits / len(expected),
        ned=1 - edits / max(len(expected), len(read)),
    )


def make_reader(name: str = "auto", **options: Any) -> TextReader:
    """The reader of a name; ``auto`` is ``paddleocr`` where that is installed and starts, else ``rapidocr``.

    Raises :class:`RewardError`: there is no such reader, it does not take an option, or it does not start.
    Raises :class:`MissingDependency`: its package is not installed.
    """
    if name == "auto":
        return _first_reader(options)
    if name not in READERS:
        raise RewardError(f"ocr: there is no reader {name!r}; known: auto, {', '.join(READERS)}")
    try:
        options = Options.of(OPTIONS[name]).convert(options)
    except ValueError as error:
        raise RewardError(f"ocr: the reader {name}: {error}") from error
    return READERS[name](**options)


def _first_reader(options: Mapping[str, Any]) -> TextReader:
    """``paddleocr``, whose models may be missing where there is no network, else ``rapidocr``, which has its own."""
    has_paddle, has_rapid = (importlib.util.find_spec(name) is not None for name in ("paddleocr", "rapidocr"))
    try:
        return make_reader("paddleocr" if has_paddle else "rapidocr", **options)
    except (RewardError, ArtifactError, MissingDependency) as error:
        if not has_paddle or not has_rapid or options.keys() - Options.of(RapidPageReader).named.keys():
            raise
        log.warning("reward ocr: uses rapidocr instead of paddleocr: %s", error)
    return make_reader("rapidocr", **options)


class OCRReward(Reward):
    """The reward ``ocr``. An image that the reader fails on is invalid, not zero."""

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

    def __init__(
        self,
        reader: Literal["auto", "paddleocr", "rapidocr", "rapidocr-band"] | TextReader = "auto",
        **options: Annotated[Any, OptionsOf(PaddleOptions)],
    ) -> None:
        """``reader`` is a name (``auto``, ``paddleocr``, ``rapidocr``, ``rapidocr-band``) or a :class:`TextReader`.

        ``options`` are those of the named reader's constructor.

        Raises :class:`RewardError`: there is no such reader, or it cannot start.
        Raises :class:`MissingDependency`: its package is not installed.
        """
        if options and not isinstance(reader, str):
            raise RewardError(f"ocr: {', '.join(options)}: options need the name of a reader")
        self.reader = make_reader(reader, **options) if isinstance(reader, str) else reader
        self.engine = self.reader.name

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without a text to render."""
        for prompt in prompts:
            target_of(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Read B images: ``scores`` has ``score``, ``exact``, ``cer`` and ``ned``."""
        targets = [target_of(prompt) for prompt in prompts]
        readings = self.reader(images)
        pairs = list(zip(targets, readings, strict=True))
        valid = torch.tensor([reading.error is None for reading in readings])
        rows = torch.tensor([score_text(target, reading.lines) for target, reading in pairs]).view(-1, 4)
        columns = dict(zip(OCRScore._fields, torch.where(valid[:, None], rows, torch.nan).unbind(dim=1), strict=True))
        details: list[dict[str, Any]] = [
            {"target": target, "read": [line.text for line in reading.lines], "reader": self.reader.name}
            | ({"error": reading.error} if reading.error else {})
            for target, reading in pairs
        ]
        return RewardResult(columns["score"], columns, valid, tuple(details))
