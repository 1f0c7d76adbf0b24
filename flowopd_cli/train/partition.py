"""Several processes at one draw: what each has of it, and how each sees what belongs to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli.core.types import RewardResult

Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Share:
    """This process's rows of a draw of ``total``: ``rows (B,)`` are their places in it.

    ``gather(value)`` gives what every process passes, in their order; all of them have to call it. Nothing in here is
    a function of how many processes there are, which is why N of them train as one would.
    """

    rows: Int[Tensor, " B"]
    total: int
    gather: Gather

    def mine(self, samples: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """Where this process has those of ``samples`` (places in the draw) that are its own, in the order of these."""
        place = torch.full((self.total,), -1)
        place[self.rows] = torch.arange(len(self.rows))
        found = place[samples]
        return found[found >= 0]

    def whole(self, result: RewardResult, group: Int[Tensor, " B"]) -> tuple[RewardResult, Int[Tensor, " A"]]:
        """The scores of all A rows of the draw and their groups, in its order; details are left where they are.

        A score that one process's prompts did not ask for is NaN in its rows.
        """
        scores = {name: column.cpu() for name, column in result.scores.items()}
        parts = self.gather((self.rows, group, result.total.cpu(), result.valid.cpu(), scores))
        order = torch.cat([part[0] for part in parts]).argsort()
        everything = RewardResult.cat([RewardResult(total, columns, valid) for _, _, total, valid, columns in parts])
        return everything[order], torch.cat([part[1] for part in parts])[order]


def dealt(total: int, updates: int, seed: int) -> tuple[Int[Tensor, " n"], ...]:
    """Which samples of a draw of ``total`` each of at most ``updates`` optimizer steps learns, by the seed alone."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)).chunk(updates)


def owners(group: Int[Tensor, " A"], deal: Sequence[Int[Tensor, " _"]], processes: int) -> list[int]:
    """The process of each group 0, 1, ...: in turn, then exchanged as long as that makes their work more equal.

    ``deal`` says which samples each optimizer step learns. Who has which group changes no result; but a step takes as
    long as the process with most of its samples, and processes of equal share may be dealt quite unequal steps.
    """
    count = int(group.max()) + 1
    owner = torch.arange(count) % processes
    rows = torch.stack([torch.bincount(group[samples], minlength=count) for samples in deal], dim=1).double()
    load = torch.zeros(processes, len(deal), dtype=torch.float64).index_add_(0, owner, rows)
    for _ in range(4 * count):
        change = rows[None] - rows[:, None]  # of the first group's process, should it take the second for the first
        gain = (change * (load[owner][:, None] - load[owner][None] + change)).sum(dim=2)
        gain.masked_fill_(owner[:, None] == owner[None], 0)
        if gain.min() >= 0:
            break
        one, two = divmod(int(gain.argmin()), count)
        load[owner[one]] += change[one, two]
        load[owner[two]] -= change[one, two]
        owner[[one, two]] = owner[[two, one]]
    return owner.tolist()
