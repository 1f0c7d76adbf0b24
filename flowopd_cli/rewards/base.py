"""The base class of rewards, and the weighted mixture of rewards that stages call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.system.threads import Background


@dataclass(frozen=True)
class RewardInfo:
    """The declaration of a reward, printed by ``flowopd rewards ls``.

    ``exact`` says whether its scores equal those of the reference implementation; ``note`` explains a deviation or a
    condition. ``license`` is that of its weights, ``extra`` the optional dependencies it needs.
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


class Reward(ABC):
    """Scores images. ``scores`` may hold several named scores; ``total`` is the one to train on.

    ``engine`` names the software that scores, when two rewards of one name may differ in it; ``weights`` identifies the
    weights. A reward with ``concurrent = True`` mostly waits, and a mixture runs it beside its other rewards.
    """

    info: RewardInfo
    engine: str = ""
    weights: Mapping[str, str] = {}
    concurrent: bool = False

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Refuse prompts that cannot be scored; called once, before any image is drawn.

        Raises:
            PromptError: a prompt lacks what the reward needs.
        """

    @abstractmethod
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B images in [0, 1] against their prompts."""


@dataclass(frozen=True)
class Weighted:
    """A reward with its weight in a mixture; ``task`` restricts it to prompts of that task."""

    reward: Reward
    weight: float = 1.0
    task: str | None = None

    def rows(self, prompts: Sequence[Prompt]) -> list[int]:
        """The indices of the prompts that the reward applies to."""
        return [i for i, prompt in enumerate(prompts) if self.task in (None, prompt.task)]


class RewardMix:
    """Weighted sum of rewards, each applied to the prompts of its task; where lower is better, its negative.

    An image is invalid when any reward that applies to it says so, or when none applies; its total is then NaN. Scores
    and details are stored under the rewards' names; further rewards of the same name get the suffix ``-2``, ``-3``.
    """

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = tuple(parts)
        self.names = unique_names([part.reward.info.name for part in parts])

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Let every reward refuse prompts of its task that it cannot score.

        Raises:
            PromptError: a prompt lacks what its reward needs.
        """
        for part in self.parts:
            part.reward.check([prompts[i] for i in part.rows(prompts)])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B images; in ``scores``, a reward that does not apply to an image is NaN.

        Raises:
            RewardError: a reward failed, or returned a wrong number of scores.
        """
        count = len(prompts)
        images, finite = blank_nonfinite(images)
        total = torch.zeros(count)
        scored = torch.zeros(count, dtype=torch.bool)
        valid = finite.clone()
        scores: dict[str, Tensor] = {}
        details: list[dict[str, Any]] = [{} for _ in prompts]
        for number, rows, result in self._results(images, prompts):
            part, name = self.parts[number], self.names[number]
            index = torch.tensor(rows)
            sign = 1.0 if part.reward.info.higher_is_better else -1.0
            result = replace(result, valid=result.valid & finite[index])
            total[index] += sign * part.weight * torch.where(result.valid, result.total, 0.0)
            scored[index] = True
            valid[index] &= result.valid
            for column_name, column in _score_columns(name, result).items():
                scores.setdefault(column_name, torch.full((count,), float("nan")))[index] = column
            for i, detail in zip(rows, result.details, strict=False):
                details[i][name] = dict(detail)
        valid &= scored
        for i in (~finite).nonzero()[:, 0].tolist():
            details[i]["error"] = "the picture has pixels that are not finite"
        return RewardResult(torch.where(valid, total, torch.nan), scores, valid, tuple(details))

    def _results(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, list[int], RewardResult]]:
        """Number, rows and result of each part that applies. Concurrent rewards run while the others compute here."""
        rows = {number: rows for number, part in enumerate(self.parts) if (rows := part.rows(prompts))}
        tasks = {
            number: partial(
                self.parts[number].reward, images[torch.tensor(mine, device=images.device)], [prompts[i] for i in mine]
            )
            for number, mine in rows.items()
        }
        waiting = {n: Background(task) for n, task in tasks.items() if self.parts[n].reward.concurrent}
        results = {n: task() for n, task in tasks.items() if n not in waiting}
        for number, mine in rows.items():
            result = waiting[number].result() if number in waiting else results[number]
            yield number, mine, _validated(self.names[number], result, len(mine))


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names with a number appended to repeated ones."""
    unique: list[str] = []
    for name in names:
        candidates = (f"{name}-{number}" for number in range(2, len(names) + 2) if f"{name}-{number}" not in names)
        unique.append(name if name not in unique else next(c for c in candidates if c not in unique))
    return tuple(unique)


def blank_nonfinite(images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, " B"]]:
    """The images, those with non-finite pixels made black, and a mask on the CPU of the finite ones."""
    finite = images.isfinite().flatten(1).all(dim=1)
    return torch.where(finite[:, None, None, None], images, 0.0), finite.cpu()


def _validated(name: str, result: RewardResult, count: int) -> RewardResult:
    """The result on the CPU, non-finite totals marked invalid."""
    for column in (result.total, result.valid, *result.scores.values()):
        if column.shape != (count,):
            raise RewardError(f"reward {name}: gave scores of shape {tuple(column.shape)} for {count} pictures")
    scores = {score: column.cpu() for score, column in result.scores.items()}
    total = result.total.detach().float().cpu()
    return RewardResult(total, scores, result.valid.cpu() & torch.isfinite(total), result.details)


def _score_columns(reward: str, result: RewardResult) -> dict[str, Float[Tensor, " B"]]:
    columns = {reward: result.total, **{f"{reward}/{n}": value for n, value in result.scores.items() if n != reward}}
    return {name: torch.where(result.valid, value.float(), torch.nan) for name, value in columns.items()}
