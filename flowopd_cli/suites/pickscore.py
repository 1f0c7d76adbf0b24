"""PickScore (arXiv 2305.01569) on Pick-a-Pic prompts, one picture each; raw scores, as papers print them."""

from __future__ import annotations

from functools import partial
from typing import Any

from flowopd_cli.core.types import Prompt
from flowopd_cli.prompts.sources import fetched, only_test
from flowopd_cli.suites.base import NamedReward, Suite

PUBLISHED = {"SD3.5-M": 21.72}


def pickscore(prompts: str | None = None, reward: str = "pickscore", **options: Any) -> Suite:
    """The suite; ``prompts`` is a local file in place of the fetched one, ``options`` go to the reward."""
    return Suite(
        name="pickscore",
        version="pickscore-1",
        prompts=partial(_prompts, prompts),
        reward=NamedReward(reward, options),
        score="raw",
        images=1,
        published=PUBLISHED,
        judge="pickscore",
    )


def _prompts(source: str | None, split: str) -> list[Prompt]:
    only_test("pickscore", split)
    return fetched("pickscore", source)
