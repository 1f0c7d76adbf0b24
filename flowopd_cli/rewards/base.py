"""The reward protocol, and the weighted mixture of rewards that stages call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Prompt, RewardResult


@dataclass(frozen=True)
class RewardInfo:
    """What a reward declares about itself; ``flowopd rewards ls`` prints it.

    ``exact`` says whether its figures equal those of the reference implementation, ``note`` why not (or under which
    condition). ``license`` is that of its weights, ``extra`` the optional dependencies it needs.
    """

    name: str
    paper: str
    low: float
    high: float
    higher_is_better: bool = True
    license: str = ""
    extra: str | None = None
    exact: bool = True
    note: str = ""


class Reward(Protocol):
    """Scores pictures. ``scores`` may hold several named figures; ``total`` is the one to train on.

    A reward may also have ``check(prompts)``, which raises ``PromptError`` for prompts that it could not score.
    """

    info: RewardInfo

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures in [0, 1] against their prompts."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A reward with its weight in a mixture; ``task`` restricts it to prompts of that task."""

    reward: Reward
    weight: float = 1.0
    task: str | None = None


class RewardMix:
    """Weighted sum of rewards, each asked only about the prompts of its task.

    A picture is invalid when any reward that applies to it says so, or when none applies.
    """

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = tuple(parts)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Let every reward that has a ``check`` refuse prompts it could not score.

        Raises:
            PromptError: a prompt lacks what its reward needs.
        """
        for part in self.parts:
            check = getattr(part.reward, "check", None)
            if check is not None:
                check([p for p in prompts if part.task is None or p.task == part.task])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures; scores of rewards that do not apply are NaN in ``scores``."""
        count = len(prompts)
        total = torch.zeros(count)
        asked = torch.zeros(count, dtype=torch.bool)
        valid = torch.ones(count, dtype=torch.bool)
        scores: dict[str, Tensor] = {}
        details: list[dict[str, Any]] = [{} for _ in prompts]
        for part in self.parts:
            rows = [i for i, p in enumerate(prompts) if part.task is None or p.task == part.task]
            if not rows:
                continue
            index = torch.tensor(rows)
            result = part.reward(images[index.to(images.device)], [prompts[i] for i in rows])
            total[index] += part.weight * torch.where(result.valid, result.total, 0.0)
            asked[index] = True
            valid[index] &= result.valid
            for name, column in _named(part.reward.info.name, result).items():
                scores.setdefault(name, torch.full((count,), float("nan")))[index] = column
            for i, detail in zip(rows, result.details, strict=False):
                details[i][part.reward.info.name] = dict(detail)
        return RewardResult(total, scores, valid & asked, tuple(details))


def _named(reward: str, result: RewardResult) -> Mapping[str, Float[Tensor, " B"]]:
    columns = {reward: torch.where(result.valid, result.total, torch.nan)}
    for name, value in result.scores.items():
        if name != reward:
            columns[f"{reward}/{name}"] = value
    return columns
