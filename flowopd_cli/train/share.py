"""Several processes at one draw: what each has of it, and how each sees what belongs to all."""

from __future__ import annotations

from collections.abc import Callable
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
        groups, totals, valid = (torch.cat([part[i] for part in parts])[order] for i in (1, 2, 3))
        columns = {}
        for name in dict.fromkeys(name for part in parts for name in part[4]):
            column = [part[4].get(name, torch.full_like(part[2], torch.nan)) for part in parts]
            columns[name] = torch.cat(column)[order]
        return RewardResult(totals, columns, valid), groups
