"""The toy world's suites: held-out prompts of each task, preference and quality on both."""

from __future__ import annotations

from flowopd_cli.suites.base import Suite
from flowopd_cli.suites.layouts import GENEVAL
from flowopd_cli.toy import prompts, rewards


def geneval() -> Suite:
    """The official verdict, mean over the six tags."""
    return Suite(
        "geneval", "toy-geneval-2", prompts.geneval, rewards.geneval, score="official", tagged=True, layout=GENEVAL
    )


def ocr() -> Suite:
    """OCR accuracy on codes that no training prompt asks for."""
    return Suite("ocr", "toy-ocr-2", prompts.ocr, rewards.ocr)


def preference() -> Suite:
    """The learned preference over the prompts of both tasks."""
    return Suite("preference", "toy-preference-2", prompts.everything, rewards.PreferenceReward)


def quality() -> Suite:
    """Print quality over the prompts of both tasks."""
    return Suite("quality", "toy-quality-2", prompts.everything, rewards.QualityReward)
