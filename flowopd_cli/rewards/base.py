"""The base class of rewards, and the weighted mixture of rewards that stages call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
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
    """A reward's description, printed by ``flowopd rewards ls``.

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
        """Raise ``PromptError`` if a prompt cannot be scored; called once, before any image is drawn."""

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

    An image is invalid if an applicable reward says so, or if none applies; its total is then NaN. Scores
    and details are stored under the rewards' names; further rewards of the same name get the suffix ``-2``, ``-3``.
    """

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = tuple(parts)
        self.names = unique_names([part.reward.info.name for part in parts])

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each trained reward's scores in the total, negative where lower is better."""
        pairs = zip(self.parts, self.names, strict=True)
        return {name: p.weight if p.reward.info.higher_is_better else -p.weight for p, name in pairs if p.weight}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Check the prompts of each task by its rewards."""
        for part in self.parts:
            part.reward.check([prompts[i] for i in part.rows(prompts)])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B images; in ``scores``, a reward that does not apply to an image is NaN.

        Raises :class:`RewardError`: a reward failed, or returned a wrong number of scores.
        """
        images, finite = blank_nonfinite(images)
        size = len(prompts)
        total, valid = torch.zeros(size), finite.clone()
        scored = torch.zeros(size, dtype=torch.bool)
        scores: dict[str, Tensor] = {}
        details: list[dict[str, Any]] = [{} for _ in prompts]
        for part, name, rows, result in self._results(images, prompts):
            result = replace(result, valid=result.valid & finite[rows])
            sign = 1.0 if part.reward.info.higher_is_better else -1.0
            total[rows] += sign * part.weight * torch.where(result.valid, result.total, 0.0)
            scored[rows] = True
            valid[rows] &= result.valid
            columns = {name: result.total, **{f"{name}/{n}": v for n, v in result.scores.items() if n != name}}
            for column, values in columns.items():
                scores.setdefault(column, torch.full((size,), torch.nan))[rows] = torch.where(
                    result.valid, values.float(), torch.nan
                )
            for i, detail in zip(rows, result.details, strict=False):
                details[i][name] = dict(detail)
        valid &= scored
        for i in (~finite).nonzero()[:, 0].tolist():
            details[i]["error"] = "the picture has pixels that are not finite"
        return RewardResult(torch.where(valid, total, torch.nan), scores, valid, tuple(details))

    def _results(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[Weighted, str, list[int], RewardResult]]:
        """Part, name, rows and result of each applicable reward; concurrent rewards run while the others compute."""
        calls = [
            (part, name, rows, partial(part.reward, images[rows], [prompts[i] for i in rows]))
            for part, name in zip(self.parts, self.names, strict=True)
            if (rows := part.rows(prompts))
        ]
        pending = {name: Background(call) for part, name, _, call in calls if part.reward.concurrent}
        results = {name: call() for _, name, _, call in calls if name not in pending}
        for part, name, rows, _ in calls:
            result = pending[name].result() if name in pending else results[name]
            yield part, name, rows, _validated(name, result, len(rows))


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names with a number appended to repeated ones."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        unique.append(name if name not in unique else next(n for n in numbered if n not in (*unique, *names)))
    return tuple(unique)


def blank_nonfinite(images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, " B"]]:
    """The images, with non-finite ones made black, and a CPU mask of the finite ones."""
    finite = images.isfinite().flatten(1).all(dim=1)
    return torch.where(finite[:, None, None, None], images, 0.0), finite.cpu()


def _validated(name: str, result: RewardResult, size: int) -> RewardResult:
    """The result on the CPU, non-finite totals marked invalid."""
    for column in (result.total, result.valid, *result.scores.values()):
        if column.shape != (size,):
            raise RewardError(f"reward {name}: gave scores of shape {tuple(column.shape)} for {size} pictures")
    scores = {score: column.cpu() for score, column in result.scores.items()}
    total = result.total.detach().float().cpu()
    return RewardResult(total, scores, result.valid.cpu() & torch.isfinite(total), result.details)
