"""The toy world's rewards: GenEval's rules over pixels, a real OCR engine, print quality."""

from __future__ import annotations

from typing import Any

from flowopd_cli.rewards.geneval.reward import GenEvalReward
from flowopd_cli.rewards.ocr.reward import OCRReward
from flowopd_cli.toy.detector import PixelDetector
from flowopd_cli.toy.quality import QualityReward

# The pixel detector's confidence is template overlap: one threshold serves every tag, counting included.
COUNTING_THRESHOLD = 0.3


def geneval(score: str = "training", **options: Any) -> GenEvalReward:
    """GenEval's rules over the pixel detector."""
    return GenEvalReward(PixelDetector(), score, **{"counting_threshold": COUNTING_THRESHOLD, **options})


def ocr() -> OCRReward:
    """OCR accuracy by the recogniser inside rapidocr's wheel."""
    return OCRReward("rapidocr-band")


def quality() -> QualityReward:
    """Print quality, which looks at the picture alone."""
    return QualityReward()
