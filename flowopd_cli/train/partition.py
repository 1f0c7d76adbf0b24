"""A draw split over several processes: which rows each has, and how results of all rows are gathered."""

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
class Partition:
    """This process's rows of a draw of ``total`` rows: ``rows (B,)`` are their positions in the draw.

    The collective ``gather(value)`` returns the values of all processes by rank; their number changes no result.
    """

    rows: Int[Tensor, " B"]
    total: int
    gather: Gather

    def local_rows(self, samples: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """Local indices of this process's ``samples`` (positions in the draw), in order."""
        index = torch.full((self.total,), -1)
        index[self.rows] = torch.arange(len(self.rows))
        local = index[samples]
        return local[local >= 0]

    def gather_scores(
        self, result: RewardResult, group: Int[Tensor, " B"], tasks: Sequence[str]
    ) -> tuple[RewardResult, Int[Tensor, " A"], tuple[str, ...]]:
        """Scores, groups and tasks of all A rows of the draw, in its order, without details.

        A score that a process did not compute is NaN in its rows.
        """
        scores = {name: column.cpu() for name, column in result.scores.items()}
        parts = self.gather((self.rows, group, tasks, result.total.cpu(), result.valid.cpu(), scores))
        order = torch.cat([part[0] for part in parts]).argsort()
        results = RewardResult.cat([RewardResult(total, columns, valid) for *_, total, valid, columns in parts])
        labels = [task for part in parts for task in part[2]]
        return results[order], torch.cat([part[1] for part in parts])[order], tuple(labels[i] for i in order.tolist())


def assign_groups(group: Int[Tensor, " A"], deal: Sequence[Int[Tensor, " _"]], processes: int) -> list[int]:
    """The process of each group 0, 1, ...: round robin, then exchanges as long as they balance the optimizer steps.

    ``deal`` has the samples of each optimizer step, which takes as long as the process with most of its samples. The
    assignment changes no result, only the time.
    """
    count = int(group.max()) + 1
    owner = torch.arange(count) % processes
    rows = torch.stack([torch.bincount(group[samples], minlength=count) for samples in deal], dim=1).double()
    load = torch.zeros(processes, len(deal), dtype=torch.float64).index_add_(0, owner, rows)
    for _ in range(4 * count):
        change = rows[None] - rows[:, None]  # of the load of group i's process if it exchanged i for j
        gain = (change * (load[owner][:, None] - load[owner][None] + change)).sum(dim=2)
        gain.masked_fill_(owner[:, None] == owner[None], 0)
        if gain.min() >= 0:
            break
        i, j = divmod(int(gain.argmin()), count)
        load[owner[i]] += change[i, j]
        load[owner[j]] -= change[i, j]
        owner[[i, j]] = owner[[j, i]]
    return owner.tolist()
