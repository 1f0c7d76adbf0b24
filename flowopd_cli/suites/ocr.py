"""OCR accuracy on Flow-GRPO's 1,018 test prompts (arXiv 2505.05470), one picture each."""

from __future__ import annotations

from functools import partial
from typing import Any

from flowopd_cli.core.types import Prompt
from flowopd_cli.prompts.sources import fetched, only_test
from flowopd_cli.suites.base import NamedReward, Suite

PUBLISHED = {"SD3.5-M": 0.59, "Flow-GRPO": 0.92, "Flow-OPD": 0.94}


def ocr(prompts: str | None = None, reward: str = "ocr", **options: Any) -> Suite:
    """The suite; ``prompts`` is a local file in place of the fetched one, ``options`` go to the reward.

    Published figures were read by PaddleOCR 2.9.1; another engine reads differently, and every result names its own.
    """
    return Suite(
        name="ocr",
        version="ocr-1",
        prompts=partial(_prompts, prompts),
        reward=NamedReward(reward, options),
        images=1,
        published=PUBLISHED,
        judge="ocr",
    )


def _prompts(source: str | None, split: str) -> list[Prompt]:
    only_test("ocr", split)
    return fetched("ocr", source)
