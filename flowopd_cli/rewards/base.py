"""The reward protocol, and the weighted mixture of rewards that stages call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.system.threads import Background


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

    A reward may also have ``check(prompts)``, which raises ``PromptError`` for prompts that it could not score;
    ``weights``, a mapping that says which weights score; and ``concurrent = True`` when it mostly waits for somebody
    else, so that a mixture asks it while its other rewards compute.
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
    """Weighted sum of rewards, each asked only about the prompts of its task; where lower is better, its negative.

    A picture is invalid when any reward that applies to it says so, or when none applies; its total is NaN, so that
    nothing can take it for a score. Its scores and details stand under the rewards' names; of several rewards of one
    name the second has ``-2`` behind it, the third ``-3``.
    """

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = tuple(parts)
        self.names = numbered([part.reward.info.name for part in parts])

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
        """Score B pictures; scores of rewards that do not apply are NaN in ``scores``.

        Raises:
            RewardError: a reward failed, or gave another number of scores than it was shown pictures.
        """
        count = len(prompts)
        images, whole = without_holes(images)
        total = torch.zeros(count)
        asked = torch.zeros(count, dtype=torch.bool)
        valid = whole.clone()
        scores: dict[str, Tensor] = {}
        details: list[dict[str, Any]] = [{} for _ in prompts]
        for number, rows, result in self._results(images, prompts):
            part, called = self.parts[number], self.names[number]
            index = torch.tensor(rows)
            sign = 1.0 if part.reward.info.higher_is_better else -1.0
            result = replace(result, valid=result.valid & whole[index])
            total[index] += sign * part.weight * torch.where(result.valid, result.total, 0.0)
            asked[index] = True
            valid[index] &= result.valid
            for name, column in _named(called, result).items():
                scores.setdefault(name, torch.full((count,), float("nan")))[index] = column
            for i, detail in zip(rows, result.details, strict=False):
                details[i][called] = dict(detail)
        valid &= asked
        for i in (~whole).nonzero()[:, 0].tolist():
            details[i]["error"] = "the picture has pixels that are not finite"
        return RewardResult(torch.where(valid, total, torch.nan), scores, valid, tuple(details))

    def _results(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, list[int], RewardResult]]:
        """The number of each part with the rows it was asked about, in order. Those that wait for others wait in the
        background, all at once, while the rest compute here.
        """
        waiting: dict[int, Background[RewardResult]] = {}
        tasks: dict[int, tuple[list[int], Callable[[], RewardResult]]] = {}
        for number, part in enumerate(self.parts):
            rows = [i for i, p in enumerate(prompts) if part.task is None or p.task == part.task]
            if not rows:
                continue
            pictures = images[torch.tensor(rows, device=images.device)]
            tasks[number] = rows, partial(part.reward, pictures, [prompts[i] for i in rows])
            if getattr(part.reward, "concurrent", False):
                waiting[number] = Background(tasks[number][1])
        done = {number: task() for number, (_, task) in tasks.items() if number not in waiting}
        for number, (rows, _) in tasks.items():
            result = waiting[number].result() if number in waiting else done[number]
            yield number, rows, _sound(self.names[number], result, len(rows))


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once: one that was there before gets the next number that makes it another."""
    found: list[str] = []
    for name in names:
        candidates = (f"{name}-{number}" for number in range(2, len(names) + 2) if f"{name}-{number}" not in names)
        found.append(name if name not in found else next(c for c in candidates if c not in found))
    return tuple(found)


def without_holes(images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, " B"]]:
    """Pictures of which those with pixels that are not finite are black, and which the others are, on the CPU."""
    whole = images.isfinite().flatten(1).all(dim=1)
    return torch.where(whole[:, None, None, None], images, 0.0), whole.cpu()


def _sound(name: str, result: RewardResult, count: int) -> RewardResult:
    """On the CPU, and without a total that is valid but no finite number; a score too few or too many is an error."""
    for column in (result.total, result.valid, *result.scores.values()):
        if column.shape != (count,):
            raise RewardError(f"reward {name}: gave scores of shape {tuple(column.shape)} for {count} pictures")
    scores = {figure: column.cpu() for figure, column in result.scores.items()}
    total = result.total.detach().float().cpu()
    return RewardResult(total, scores, result.valid.cpu() & torch.isfinite(total), result.details)


def _named(reward: str, result: RewardResult) -> Mapping[str, Float[Tensor, " B"]]:
    columns = {reward: result.total, **{f"{reward}/{n}": value for n, value in result.scores.items() if n != reward}}
    return {name: torch.where(result.valid, value.float(), torch.nan) for name, value in columns.items()}
