"""Test sets of Flow-GRPO (arXiv 2505.05470) and the average of Flow-OPD (arXiv 2605.08063).

Published figures of SD3.5-M and Flow-GRPO are those of arXiv 2505.05470, quoted second hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RecipeError
from flowopd_cli.prompts.public import is_public
from flowopd_cli.prompts.sources import evaluation_prompts
from flowopd_cli.suites.base import NamedReward, Result, Suite, SuiteGroup, combined_error
from flowopd_cli.suites.geneval import geneval
from flowopd_cli.system.arguments import Options
from flowopd_cli.system.text import suggest

DRAWBENCH_SCORERS = ("aesthetic", "imagereward", "hpsv2", "deqa", "pickscore")
# The reward's figure that papers print, where it is not its total.
HEADLINES = {"deqa": "score", "pickscore": "raw", "unifiedreward": "raw"}
DRAWBENCH_PUBLISHED = {
    "aesthetic": {"SD3.5-M": 5.39},
    "imagereward": {"SD3.5-M": 0.87},
    "deqa": {"SD3.5-M": 4.07},
    "pickscore": {"SD3.5-M": 22.34},
    "unifiedreward": {"SD3.5-M": 3.33},
}
OCR_PUBLISHED = {"SD3.5-M": 0.59, "Flow-GRPO": 0.92, "Flow-OPD": 0.94}
PICKSCORE_PUBLISHED = {"SD3.5-M": 21.72}

AVERAGE_SCALES = {"geneval": 1.0, "ocr": 1.0, "deqa": 5.0, "pickscore": 26.0}
AVERAGE_PUBLISHED = {"SD3.5-M": 0.7165, "Flow-OPD": 0.90}


def ocr(prompts: str | None = None, reward: str = "ocr", **options: Any) -> Suite:
    """OCR accuracy on 1,018 prompts; ``prompts`` is a local file in place of the fetched one.

    ``reward`` is another name for the reward, such as ``remote:URL``; ``options`` go to it. Published figures were read
    by PaddleOCR 2.9.1; results of another engine differ and name it.
    """
    return _suite("ocr", "ocr", prompts, NamedReward(reward, options), OCR_PUBLISHED)


def pickscore(prompts: str | None = None, reward: str = "pickscore", **options: Any) -> Suite:
    """Raw PickScore (arXiv 2305.01569) on Pick-a-Pic prompts; arguments as for :func:`ocr`."""
    return _suite("pickscore", "pickscore", prompts, NamedReward(reward, options), PICKSCORE_PUBLISHED)


def deqa(prompts: str | None = None, reward: str = "deqa", **options: Any) -> Suite:
    """DeQA alone on DrawBench, from 1 to 5; arguments as for :func:`ocr`."""
    return _suite("deqa", "drawbench", prompts, NamedReward(reward, options), DRAWBENCH_PUBLISHED["deqa"])


def drawbench(
    prompts: str | None = None,
    scorers: Sequence[str] = DRAWBENCH_SCORERS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> SuiteGroup:
    """DrawBench's 200 prompts, drawn once for all scorers: one suite ``drawbench-<scorer>`` each.

    ``options`` are those of each scorer by its name; ``reward`` among them is another name for it.
    """
    _check_names("drawbench", options or {}, scorers)
    suites = []
    for scorer in scorers:
        rest = dict((options or {}).get(scorer, {}))
        reward = NamedReward(str(rest.pop("reward", scorer)), rest)
        published = DRAWBENCH_PUBLISHED.get(scorer, {})
        suites.append(_suite(f"drawbench-{scorer}", "drawbench", prompts, reward, published))
    return SuiteGroup("drawbench", tuple(suites))


def _check_names(suite: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            raise RecipeError(f"{suite}: no options of {name!r}{suggest(name, known)}; known: {', '.join(known)}")


def average(**options: Mapping[str, Any]) -> SuiteGroup:
    """GenEval, OCR, DeQA and PickScore with their average; ``options`` are those of each suite by its name."""
    members = {"geneval": geneval, "ocr": ocr, "deqa": deqa, "pickscore": pickscore}
    _check_names("average", options, list(members))
    suites = tuple(make(**Options.of(make).convert(options.get(name, {}))) for name, make in members.items())
    return SuiteGroup("average", suites, combine)


def combine(results: Mapping[str, Result]) -> Result | None:
    """Mean of GenEval, OCR, DeQA / 5 and PickScore / 26 in equal parts, ``None`` where one is missing."""
    if not results.keys() >= AVERAGE_SCALES.keys():
        return None
    members = [results[name] for name in AVERAGE_SCALES]
    parts = {name: results[name]["mean"] / scale for name, scale in AVERAGE_SCALES.items()}
    errors = [
        None if member["stderr"] is None else member["stderr"] / scale
        for member, scale in zip(members, AVERAGE_SCALES.values(), strict=True)
    ]
    return {
        "suite": "average",
        "version": "average-1",
        "exact": all(member.get("exact", True) for member in members),
        "mean": sum(parts.values()) / len(parts),
        "stderr": combined_error(errors),
        "n": sum(member["n"] for member in members),
        "parts": parts,
        "published": AVERAGE_PUBLISHED,
    }


def _suite(
    name: str, prompt_set: str, prompts: str | None, reward: NamedReward, published: Mapping[str, float]
) -> Suite:
    scorer = name.removeprefix("drawbench-")
    return Suite(
        name=name,
        version=f"{prompt_set}-1",
        prompts=_prompts(prompt_set, prompts),
        reward=reward,
        score=HEADLINES.get(scorer),
        images=1,
        folder=prompt_set,
        judge=scorer,
        has_own_prompts=partial(is_public, prompt_set, prompts),
        published=published,
    )


@cache
def _prompts(name: str, source: str | None) -> Callable[[str], list[Prompt]]:
    """One reader for all suites of a prompt set, so that an evaluation reads its file once."""
    return partial(evaluation_prompts, name, source=source)
