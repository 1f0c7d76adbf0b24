"""DrawBench's 200 prompts, judged by several scorers at once: pictures are drawn once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flowopd_cli.core.types import Prompt
from flowopd_cli.prompts.sources import fetched, only_test
from flowopd_cli.suites.base import NamedReward, Suite, SuiteGroup

SCORERS = ("aesthetic", "imagereward", "hpsv2", "deqa", "pickscore")
HEADLINE = {"pickscore": "raw", "deqa": "score"}
# SD3.5-M as Flow-GRPO prints it (arXiv 2505.05470); second hand.
PUBLISHED = {"aesthetic": 5.39, "imagereward": 0.87, "deqa": 4.07, "pickscore": 22.34}


def drawbench(
    prompts: str | None = None,
    scorers: Sequence[str] = SCORERS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> SuiteGroup:
    """One suite a scorer, ``drawbench-<scorer>``; ``options`` are those of each scorer by its name.

    ``reward`` among them is another name for the scorer, such as ``remote:URL``.
    """
    given = options or {}
    return SuiteGroup(
        "drawbench", tuple(_suite(f"drawbench-{name}", name, prompts, given.get(name, {})) for name in scorers)
    )


def deqa(prompts: str | None = None, reward: str = "deqa", **options: Any) -> Suite:
    """DeQA alone on the same prompts, from 1 to 5; ``reward`` may be another name for it, such as ``remote:URL``."""
    return _suite("deqa", "deqa", prompts, {"reward": reward, **options})


def _suite(name: str, scorer: str, prompts: str | None, options: Mapping[str, Any]) -> Suite:
    own = {key: value for key, value in options.items() if key != "reward"}
    return Suite(
        name=name,
        version="drawbench-1",
        prompts=partial(_prompts, prompts),
        reward=NamedReward(str(options.get("reward", scorer)), own),
        score=HEADLINE.get(scorer),
        images=1,
        folder="drawbench",
        judge=scorer,
        published={"SD3.5-M": PUBLISHED[scorer]} if scorer in PUBLISHED else {},
    )


def _prompts(source: str | None, split: str) -> list[Prompt]:
    only_test("drawbench", split)
    return fetched("drawbench", source)
