"""What a suite is, and how pictures become its figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flowopd_cli.core.types import Prompt, RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward

CHUNK = 256


@dataclass(frozen=True)
class Suite:
    """Prompts of a split, the reward that judges them and how its scores are averaged.

    ``score`` names the reward's figure that is the suite's headline (``None``: its total). With ``tagged`` the mean is
    the unweighted mean of the means of the prompts' ``metadata["tag"]``, as GenEval reports.
    """

    name: str
    version: str
    prompts: Callable[[str], list[Prompt]]
    reward: Callable[[], Reward]
    score: str | None = None
    tagged: bool = False


def image_seed(seed: int, prompt_id: str, index: int) -> int:
    """The noise seed of a picture: a function of the suite's seed, the prompt and the picture's number alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def evaluate(
    suite: Suite,
    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """Score B pictures: ``mean ± stderr`` over the valid ones, a row for each, and how they were made.

    Raises:
        RewardError: no picture could be scored.
    """
    reward = suite.reward()
    headline: list[float] = []
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        result = reward(as_float(images[start : start + CHUNK]), part)
        values = result.total if suite.score is None else result.scores[suite.score]
        headline += torch.where(result.valid, values.double(), torch.nan).tolist()
        rows += _rows(result, part, indices[start : start + CHUNK])
    clusters = [prompt.id for prompt in prompts]
    tags = [str(prompt.metadata.get("tag", "")) if suite.tagged else "" for prompt in prompts]
    means, mean, stderr = aggregate(headline, clusters, tags)
    if not means:
        raise RewardError(f"suite {suite.name}: no picture could be scored")
    return {
        "suite": suite.name,
        "version": suite.version,
        "mean": mean,
        "stderr": stderr,
        "n": sum(not math.isnan(value) for value in headline),
        "invalid": sum(math.isnan(value) for value in headline),
        "prompts": len(set(clusters)),
        "by_tag": means if suite.tagged else {},
        "figures": {name: _mean([row["scores"][name] for row in rows]) for name in sorted(rows[0]["scores"])},
        "protocol": dict(protocol),
        "rows": rows,
    }


def aggregate(
    values: Sequence[float], clusters: Sequence[str], tags: Sequence[str]
) -> tuple[dict[str, float], float, float]:
    """Mean of each tag, their unweighted mean, and its standard error with pictures clustered by prompt.

    NaN values are left out. Pictures of one prompt are not independent, so the error of a tag is that of the mean of
    its prompts' means.
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
        variances.append(float(centres.var()) / len(centres) if len(centres) > 1 else 0.0)
    if not means:
        return means, math.nan, math.nan
    return means, sum(means.values()) / len(means), math.sqrt(sum(variances)) / len(means)


def as_float(images: Tensor) -> Float[Tensor, "B 3 H W"]:
    """Pictures in [0, 1] from bytes, or as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _rows(result: RewardResult, prompts: Sequence[Prompt], indices: Sequence[int]) -> list[dict[str, Any]]:
    details = result.details or tuple({} for _ in prompts)
    return [
        {
            "prompt": prompt.id,
            "text": prompt.text,
            "index": index,
            "valid": bool(result.valid[i]),
            "scores": {name: round(float(column[i]), 6) for name, column in result.scores.items()},
            "details": dict(details[i]),
        }
        for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True))
    ]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan
