"""LongText-Bench (Geng et al. 2025, X-Omni, arXiv 2507.22058): 160 English and 160 Chinese prompts, four pictures each.

Published figures are read by Qwen2.5-VL-7B. Those of another reader have its name in theirs, as
``longtext-bench-en[rapidocr]``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.prompts.public import is_public
from flowopd_cli.prompts.sources import evaluation_prompts
from flowopd_cli.rewards.ocr.longtext import QWEN
from flowopd_cli.suites.base import NamedReward, Suite, SuiteGroup
from flowopd_cli.suites.layouts import Layout

REWARD = "longtext"
# Of X-Omni's paper and the models' own reports.
PUBLISHED = {
    "en": {"FLUX.1-dev": 0.607, "Qwen-Image": 0.943, "Z-Image-Turbo": 0.917, "X-Omni": 0.900},
    "zh": {"FLUX.1-dev": 0.005, "Qwen-Image": 0.946, "Z-Image-Turbo": 0.926, "X-Omni": 0.814},
}
#: ``0012_1.png``: the prompt's number in the benchmark, the picture's from 1
LAYOUT = Layout(lambda place: f"{place.prompt.metadata['prompt_id']:04d}_{place.index + 1}.png")


def english(prompts: str | None = None, reader: str = QWEN, reward: str = REWARD, **options: Any) -> Suite:
    """The share of English words written.

    ``prompts`` is a local file, or a folder with it, in place of the fetched one. ``reward`` is another name for the
    reward, such as ``remote:URL``, whose reader is set where it is served and named here; ``options`` go to it.
    """
    return _suite("en", prompts, reader, reward, **options)


def chinese(prompts: str | None = None, reader: str = QWEN, reward: str = REWARD, **options: Any) -> Suite:
    """The share of Chinese characters written; arguments as for :func:`english`."""
    return _suite("zh", prompts, reader, reward, **options)


def longtext_bench(prompts: str | None = None, reader: str = QWEN, reward: str = REWARD, **options: Any) -> SuiteGroup:
    """Both languages, without a common figure; ``prompts`` is a folder with both files, else as for :func:`english`."""
    if prompts is not None and Path(prompts).is_file():
        raise RecipeError(
            f"longtext-bench: prompts names a folder with both files, {prompts} is one: use longtext-bench-en or -zh"
        )
    suites = tuple(_suite(language, prompts, reader, reward, **options) for language in PUBLISHED)
    return SuiteGroup("longtext-bench", suites)


def _suite(language: str, prompts: str | None, reader: str, reward: str, **options: Any) -> Suite:
    name = f"longtext-bench-{language}"
    if reader != QWEN and not reward.startswith("remote:"):
        options["reader"] = reader
    return Suite(
        name=name if reader == QWEN else f"{name}[{reader}]",
        version="longtext-bench-1",
        prompts=partial(evaluation_prompts, f"longtext-{language}", source=prompts),
        reward=NamedReward(reward, options),
        images=4,
        weight="expected",
        layout=LAYOUT,
        folder=name,
        published=PUBLISHED[language] if reader == QWEN else {},
        engine=reader,
        judge=REWARD,
        has_own_prompts=partial(is_public, f"longtext-{language}", prompts),
    )
