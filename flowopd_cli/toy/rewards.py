"""The toy world's rewards: GenEval's rules over pixels, a real OCR engine, a learned preference, print quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli import toy
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.geneval.reward import GenEvalReward
from flowopd_cli.rewards.geneval.rules import GenEvalOptions
from flowopd_cli.rewards.ocr.rapidocr import RapidTextReader
from flowopd_cli.rewards.ocr.reading import Reading
from flowopd_cli.rewards.ocr.reward import OCRReward
from flowopd_cli.rewards.weights import shared, weights_id
from flowopd_cli.system.arguments import OptionsOf
from flowopd_cli.toy import scorer
from flowopd_cli.toy.detector import PixelDetector
from flowopd_cli.toy.draw import PAPER
from flowopd_cli.toy.ink import HATCH_FULL, border_paper, hatch, read_ink, stretched

# The pixel detector's confidence is template overlap: one threshold serves every tag, counting included.
COUNTING_THRESHOLD = 0.3
RESIDUAL_SCALE = 0.2
INKED_SHARE = 0.05
SCAN_ZERO, SCAN_FULL = 0.25, 0.55  # coverage that a scan makes white and black
TEMPERATURE = 2.5  # of the preference: pictures of the base spread over about 0.2 to 0.8
BATCH = 256


def geneval(
    score: Literal["training", "official", "strict"] = "training",
    **options: Annotated[Any, OptionsOf(GenEvalOptions)],
) -> GenEvalReward:
    """GenEval's rules over the pixel detector."""
    return GenEvalReward(PixelDetector(), score, **{"counting_threshold": COUNTING_THRESHOLD, **options})


class ScanReader(RapidTextReader):
    """The recognizer inside rapidocr's wheel on a coarse scan, which loses pixels of little ink and thin lines."""

    def __init__(self) -> None:
        super().__init__()
        self.name = f"{self.name}/scan-1"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """At most one line for each RGB image in [0, 1]."""
        return super().__call__(scan(images))


def scan(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H-1 W"]:
    """In shades of gray, the lesser ink of each two neighbouring rows, stretched from `SCAN_ZERO` to `SCAN_FULL`."""
    images = images.detach().float().cpu()
    coverage = read_ink(images, border_paper(images)).coverage
    ink = torch.minimum(coverage[:, :-1], coverage[:, 1:])
    gray = 1 - stretched(ink, SCAN_ZERO, SCAN_FULL)
    return gray[:, None].expand(-1, 3, -1, -1)


def ocr() -> OCRReward:
    """OCR accuracy on a coarse scan of the picture."""
    return OCRReward(ScanReader())


def print_quality(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """``exp(-mean residual / 0.2) * contrast * style`` in [0, 1] of each picture.

    The residual is each pixel's distance from any mixture of clean paper and one ink: stains, tint, noise and other
    colors raise it. Contrast is the coverage of the darkest twentieth of the pixels: fading and blur lower it. Style
    is the hatch, up to `HATCH_FULL`: solid ink has none.
    """
    images = images.detach().float().cpu()
    reading = read_ink(images, images.new_tensor(PAPER).view(1, 3, 1, 1))
    dirt = reading.residual.flatten(1).mean(dim=1)
    coverage = reading.coverage.flatten(1)
    contrast = coverage.topk(max(1, int(INKED_SHARE * coverage.shape[1])), dim=1).values.mean(dim=1)
    style = (hatch(reading.coverage) / HATCH_FULL).clamp(max=1)
    return torch.exp(-dirt / RESIDUAL_SCALE) * contrast * style


class PreferenceReward(Reward):
    """The reward ``toy-preference``, the toy's stand-in for PickScore: a small network that reads the prompt."""

    info = RewardInfo(name="preference", paper="docs/toy.md", low=0.0, high=1.0)

    def __init__(self) -> None:
        folder = toy.folder() / "scorer"
        self.weights = {"scorer": weights_id(folder)}
        self._scorer, self._tokenizer = shared(scorer.load, str(folder)), shared(scorer.tokenizer)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against the texts of their prompts; every one is valid."""
        tokens = scorer.tokenize(self._tokenizer, [prompt.text for prompt in prompts])
        images = images.detach().float().cpu()
        logits = [self._scorer(*rows) for rows in zip(images.split(BATCH), tokens.split(BATCH), strict=True)]
        total = torch.sigmoid(torch.cat(logits) / TEMPERATURE)
        return RewardResult(total, {"preference": total}, torch.ones(len(total), dtype=torch.bool))


class QualityReward(Reward):
    """The reward ``toy-quality``, the toy's stand-in for DeQA, which ignores the prompt."""

    info = RewardInfo(name="quality", paper="docs/toy.md", low=0.0, high=1.0)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures; every one is valid."""
        total = print_quality(images)
        return RewardResult(total, {"quality": total}, torch.ones(len(total), dtype=torch.bool))
