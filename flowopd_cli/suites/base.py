"""Suites, and their figures from scored pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from flowopd_cli.core.clusters import clustered_mean
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.suites.layouts import FLAT, Layout

Row = dict[str, Any]
Result = dict[str, Any]


class MissingScores(ArtifactError):
    """An official scorer has written no output for a suite."""


@dataclass(frozen=True)
class NamedReward:
    """A reward of the registry with its options, loaded when the suite runs."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Prompts, the reward that scores their pictures, and how the scores are averaged."""

    name: str
    version: str
    prompts: Callable[[str], list[Prompt]]  #: the prompts of a split
    reward: Callable[[], Reward] | NamedReward
    score: str | None = None  #: the reward's figure that is the headline; ``None``: its total
    tagged: bool = False  #: the headline is the unweighted mean over ``metadata["tag"]``, as in GenEval
    images: int = 4  #: pictures a prompt
    layout: Layout = FLAT  #: file names, those that the official scorer expects
    published: Mapping[str, float] = field(default_factory=dict)  #: figures of papers, by model
    imported: Callable[[Path], Result] | None = None  #: reads the official scorer's output
    folder: str | None = None  #: folder of its pictures; ``None``: its name
    aliases: tuple[str, ...] = ()  #: names of that folder in other programs
    breakdown: Callable[[Sequence[Row]], Mapping[str, float]] = lambda rows: {}  #: figures of parts of the rows
    weight: str | None = None  #: the reward's figure that weights a picture in the mean; ``None``: all alike
    engine: str | None = None  #: how the name of the engine that it is scored by begins; ``None``: any
    judge: str | None = None  #: the reward that defines the suite; figures of another one are not exact
    has_own_prompts: Callable[[], bool] = lambda: True  #: whether ``prompts`` are the suite's own, not a user's

    @property
    def picture_folder(self) -> str:
        """The folder of its pictures, below that of all suites."""
        return self.folder or self.name


@dataclass(frozen=True)
class SuiteGroup:
    """Suites with a common name; ``combine`` computes the group's figure, or ``None`` if results are missing."""

    name: str
    suites: tuple[Suite, ...]
    combine: Callable[[Mapping[str, Result]], Result | None] | None = None


def image_seed(seed: int, prompt_id: str, index: int) -> int:
    """The noise seed of a picture, a function of these three alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def score(
    suite: Suite, reward: Reward, images: UInt8[Tensor, "B 3 H W"], prompts: Sequence[Prompt], indices: Sequence[int]
) -> list[Row]:
    """One row a picture with all its scores; ``value`` is the headline, ``None`` where the picture is invalid.

    Raises :class:`RewardError`: the reward does not return the suite's figure.
    """
    result = reward(images.float() / 255, prompts)
    for figure in (suite.score, suite.weight):
        if figure is not None and figure not in result.scores:
            scores = ", ".join(result.scores) or "none but the total"
            raise RewardError(f"suite {suite.name}: {reward.info.name} returns no score {figure!r} (it has {scores})")
    headline = result.total if suite.score is None else result.scores[suite.score]
    valid = [bool(good) for good in result.valid]
    details = result.details or ({},) * len(prompts)
    return [
        {
            "prompt": prompt.id,
            "task": prompt.task,
            "text": prompt.text,
            "index": index,
            "tag": str(prompt.metadata.get("tag", "")) if suite.tagged else "",
            "valid": valid[i],
            "value": finite_or_none(round(float(headline[i]), 6)) if valid[i] else None,
            "scores": {
                name: finite_or_none(round(float(column[i]), 6)) if valid[i] else None
                for name, column in result.scores.items()
            },
            "details": dict(details[i]),
        }
        for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True))
    ]


def summarize(suite: Suite, rows: Sequence[Row], protocol: Mapping[str, Any], reward: Reward) -> Result:
    """Mean and standard error over the valid rows, by tag where the suite has tags, with the protocol.

    Raises :class:`RewardError`: no picture could be scored.
    """
    headline = [math.nan if row["value"] is None else float(row["value"]) for row in rows]
    clusters = [f"{row['task']}/{row['prompt']}" for row in rows]
    weights = None if suite.weight is None else [row["scores"][suite.weight] or 0.0 for row in rows]
    means, mean, stderr = aggregate(headline, clusters, [row["tag"] for row in rows], weights)
    if not means:
        error = next((f" ({row['details']['error']})" for row in rows if row["details"].get("error")), "")
        raise RewardError(f"suite {suite.name}: no picture could be scored{error}")
    names = sorted({name for row in rows for name in row["scores"]})
    figures = {name: _mean([row["scores"].get(name) for row in rows]) for name in names}
    is_judge = suite.judge in (None, reward.info.name)
    unscored = sorted({row["tag"] for row in rows} - means.keys())
    notes = [reward.info.note] if reward.info.note else []
    notes += [] if is_judge else [f"judged by {reward.info.name}, not by {suite.judge}"]
    notes += [f"no picture of {', '.join(unscored)} could be scored"] if unscored else []
    return {
        "suite": suite.name,
        "version": suite.version,
        "reward": reward.info.name,
        "engine": reward.engine or reward.info.name,
        "weights": {name: str(value) for name, value in reward.weights.items()},
        "exact": reward.info.exact and is_judge and not unscored,
        "note": "; ".join(notes),
        "mean": mean,
        "stderr": finite_or_none(stderr),
        "n": sum(not math.isnan(value) for value in headline),
        "invalid": sum(math.isnan(value) for value in headline),
        "prompts": len(set(clusters)),
        "weight": suite.weight,
        "by_tag": means if suite.tagged else {},
        "figures": {**figures, **suite.breakdown(rows)},
        "published": dict(suite.published) if is_judge else {},
        "protocol": dict(protocol),
    }


def aggregate(
    values: Sequence[float], clusters: Sequence[str], tags: Sequence[str], weights: Sequence[float] | None = None
) -> tuple[dict[str, float], float, float]:
    """Mean of each tag, their unweighted mean, and its standard error with pictures clustered by prompt.

    NaN values are left out. Pictures of one prompt are not independent, so the error of a tag is the standard error of
    the prompts' means, NaN for a single prompt. ``weights`` of the pictures are positive; with them the means are
    weighted, and in the error a prompt counts by the weights of its pictures.
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for i, (value, cluster, tag) in enumerate(zip(values, clusters, tags, strict=True)):
        if not math.isnan(value):
            pair = value, 1.0 if weights is None else weights[i]
            groups.setdefault(tag, {}).setdefault(cluster, []).append(pair)
    if not groups:
        return {}, math.nan, math.nan
    return clustered_mean(groups, weighted=weights is not None)


def finite_or_none(value: float) -> float | None:
    """The number, ``None`` if it is NaN or infinite."""
    return value if math.isfinite(value) else None


def combined_error(errors: Sequence[float | None]) -> float | None:
    """Standard error of the mean of independent figures, ``None`` if one of their errors is."""
    squares = [error**2 for error in errors if error is not None]
    return math.sqrt(sum(squares)) / len(errors) if errors and len(squares) == len(errors) else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
