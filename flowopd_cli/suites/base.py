"""What a suite is, and how rows of scored pictures become its figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.suites.layouts import FLAT, Layout

Row = dict[str, Any]
Result = dict[str, Any]


class Absent(ArtifactError):
    """An official scorer's output is not there: a part that was not scored, and no mistake."""


@dataclass(frozen=True)
class NamedReward:
    """A reward by its name in the registry, with its options; whoever runs the suite loads it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Prompts of a split, the reward that judges them and how its scores are averaged.

    ``score`` names the reward's figure that is the suite's headline (``None``: its total). With ``tagged`` the mean is
    the unweighted mean of the means of the prompts' ``metadata["tag"]``, as GenEval reports. ``images`` is the
    protocol's number of pictures a prompt, ``layout`` how they lie on disk so that the official scorer finds them,
    ``published`` what papers print, by model. ``imported`` reads the official scorer's own output instead. ``folder``
    is where its pictures lie (its name, if left out), ``aliases`` where another program may have put them. ``judge`` is
    the reward that defines the suite: with another one the figure is not the suite's.
    """

    name: str
    version: str
    prompts: Callable[[str], list[Prompt]]
    reward: Callable[[], Reward] | NamedReward
    score: str | None = None
    tagged: bool = False
    images: int = 4
    layout: Layout = FLAT
    published: Mapping[str, float] = field(default_factory=dict)
    imported: Callable[[Path], Result] | None = None
    folder: str | None = None
    aliases: tuple[str, ...] = ()
    judge: str | None = None


@dataclass(frozen=True)
class SuiteGroup:
    """Suites that are asked for by one name, and the figures that only all of them together have.

    ``combine`` makes those, or ``None`` where what was judged is too little for them.
    """

    name: str
    suites: tuple[Suite, ...]
    combine: Callable[[Mapping[str, Result]], Result | None] | None = None


def image_seed(seed: int, prompt_id: str, index: int) -> int:
    """The noise seed of a picture: a function of the suite's seed, the prompt and the picture's number alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def score(
    suite: Suite, reward: Reward, images: UInt8[Tensor, "B 3 H W"], prompts: Sequence[Prompt], indices: Sequence[int]
) -> list[Row]:
    """Score B pictures: a row each, with every score, and the headline under ``value`` (``None`` where invalid).

    Raises:
        RewardError: the reward has no such figure.
    """
    result = reward(as_float(images), prompts)
    if suite.score is not None and suite.score not in result.scores:
        has = ", ".join(result.scores) or "none but its total"
        raise RewardError(f"suite {suite.name}: its figure is {suite.score!r}, and {reward.info.name} has {has}")
    headline = result.total if suite.score is None else result.scores[suite.score]
    valid = [bool(good) for good in result.valid]
    details = result.details or tuple({} for _ in prompts)
    return [
        {
            "prompt": prompt.id,
            "task": prompt.task,
            "text": prompt.text,
            "index": index,
            "tag": str(prompt.metadata.get("tag", "")) if suite.tagged else "",
            "valid": valid[i],
            "value": _figure(headline[i]) if valid[i] else None,
            "scores": {name: _figure(column[i]) if valid[i] else None for name, column in result.scores.items()},
            "details": dict(details[i]),
        }
        for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True))
    ]


def summarize(suite: Suite, rows: Sequence[Row], protocol: Mapping[str, Any], reward: Reward) -> Result:
    """``mean ± stderr`` over the valid rows, by tag where the suite has tags, and how they were made.

    Raises:
        RewardError: no picture could be scored.
    """
    headline = [math.nan if row["value"] is None else float(row["value"]) for row in rows]
    clusters = [f"{row['task']}/{row['prompt']}" for row in rows]
    means, mean, stderr = aggregate(headline, clusters, [row["tag"] for row in rows])
    if not means:
        raise RewardError(f"suite {suite.name}: no picture could be scored{_why(rows)}")
    names = sorted({name for row in rows for name in row["scores"]})
    own = suite.judge in (None, reward.info.name)
    lost = sorted({row["tag"] for row in rows} - means.keys())
    notes = [reward.info.note] if reward.info.note else []
    notes += [] if own else [f"judged by {reward.info.name}, not by {suite.judge}"]
    notes += [f"no picture of {', '.join(lost)} could be scored"] if lost else []
    return {
        "suite": suite.name,
        "version": suite.version,
        "reward": reward.info.name,
        "engine": str(getattr(reward, "engine", reward.info.name)),
        "weights": {name: str(value) for name, value in getattr(reward, "weights", {}).items()},
        "exact": reward.info.exact and own and not lost,
        "note": "; ".join(notes),
        "mean": mean,
        "stderr": known(stderr),
        "n": sum(not math.isnan(value) for value in headline),
        "invalid": sum(math.isnan(value) for value in headline),
        "prompts": len(set(clusters)),
        "by_tag": means if suite.tagged else {},
        "figures": {name: _mean([row["scores"].get(name) for row in rows]) for name in names},
        "published": dict(suite.published) if own else {},
        "protocol": dict(protocol),
    }


def aggregate(
    values: Sequence[float], clusters: Sequence[str], tags: Sequence[str]
) -> tuple[dict[str, float], float, float]:
    """Mean of each tag, their unweighted mean, and its standard error with pictures clustered by prompt.

    NaN values are left out. Pictures of one prompt are not independent, so the error of a tag is that of the mean of
    its prompts' means; it is NaN where a tag has a single prompt.
    """
    means: dict[str, float] = {}
    variances: list[float] = []
    for tag in dict.fromkeys(tags):
        grouped: dict[str, list[float]] = {}
        for value, cluster, other in zip(values, clusters, tags, strict=True):
            if other == tag and not math.isnan(value):
                grouped.setdefault(cluster, []).append(value)
        if not grouped:
            continue
        centres = torch.tensor([sum(v) / len(v) for v in grouped.values()], dtype=torch.float64)
        means[tag] = sum(sum(v) for v in grouped.values()) / sum(len(v) for v in grouped.values())
        variances.append(float(centres.var()) / len(centres) if len(centres) > 1 else math.nan)
    if not means:
        return means, math.nan, math.nan
    return means, sum(means.values()) / len(means), math.sqrt(sum(variances)) / len(means)


def known(value: float) -> float | None:
    """A number, ``None`` in place of one that is not known."""
    return value if math.isfinite(value) else None


def combined_error(errors: Sequence[float | None]) -> float | None:
    """Standard error of the mean of independent figures; not known where one of theirs is not."""
    found = [error for error in errors if error is not None]
    return math.sqrt(sum(error**2 for error in found)) / len(found) if found and len(found) == len(errors) else None


def as_float(images: Tensor) -> Float[Tensor, "B 3 H W"]:
    """Pictures in [0, 1] from bytes, or as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _figure(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _why(rows: Sequence[Row]) -> str:
    reasons = [str(row["details"]["error"]) for row in rows if row["details"].get("error")]
    return f" ({reasons[0]})" if reasons else ""
