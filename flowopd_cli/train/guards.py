"""Numerical guards: what must not be learned, and figures that say that a training goes wrong.

:class:`Guard` looks at each micro-batch's loss and gradient while they are at hand; :class:`Watch` at the rows of the
metrics. Neither changes a run in which all is well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean, median

import torch
from torch import Tensor, nn

from flowopd_cli.core.types import Loss, StepBatch

WINDOW = 10  # iterations that a mean is taken over
FLAT, FLAT_ROWS = 0.9, 5
CLIPPED, CLIPPED_ROWS = 0.8, 5
EXPLOSION = 10.0


@dataclass(frozen=True)
class Fault:
    """Why an optimizer step was not taken: ``loss`` or ``gradient`` was not finite, and the prompts concerned."""

    what: str
    prompts: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(repr(prompt) for prompt in self.prompts[:3])
        more = f" and {len(self.prompts) - 3} more" if len(self.prompts) > 3 else ""
        return f"the {self.what} is not finite" + (f" (prompts: {shown}{more})" if shown else "")


@dataclass
class Guard:
    """Watches the micro-batches of one optimizer step; ``fault`` and ``batch`` are those of the first bad one."""

    parameters: Sequence[nn.Parameter]
    fault: Fault | None = None
    batch: StepBatch | None = None

    def passes(self, loss: Loss, batch: StepBatch) -> bool:
        """Whether loss and gradient are finite after the backward of ``batch``, as those before it were."""
        if self.fault is not None:
            return False
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if bool(torch.isfinite(loss.total.detach()) & finite(gradients).to(loss.total.device)):
            return True
        what = "gradient" if bool(torch.isfinite(loss.total.detach())) else "loss"
        self.fault, self.batch = Fault(what, tuple(dict.fromkeys(p.text for p in batch.prompts or ()))), batch
        return False


def finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every number of every tensor is finite: a boolean tensor ``()``."""
    if not tensors:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(list(tensors), float("inf"))).isfinite().all()


@dataclass
class Watch:
    """Says once what looks wrong, and what to try, and again only when it had gone away in between."""

    _rewards: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _spreads: list[float] = field(default_factory=list)
    _best: float = -inf
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def observe(self, row: Mapping[str, float | None]) -> list[str]:
        """Warnings that begin with this row of the metrics, as logged or as read again; rows come in their order."""
        return self._new({name: value for name, value in row.items() if value is not None and isfinite(value)})

    def _new(self, row: Mapping[str, float]) -> list[str]:
        found = {
            "flat": self._flat(row),
            "invalid": self._invalid(row),
            "reward": self._collapse(row),
            "clip": self._clipped(row),
            **{name: self._explosion(name, row) for name in row if name.startswith("kl") and "/" not in name},
        }
        new = [text for name, text in found.items() if text and name not in self._said]
        self._said = {name for name, text in found.items() if text}
        return new

    def _flat(self, row: Mapping[str, float]) -> str | None:
        if self._least("flat_groups", row, FLAT_ROWS) < FLAT:
            return None
        return (
            f"for {FLAT_ROWS} iterations {FLAT:.0%} of the groups or more have had equal rewards, which teach nothing: "
            "try prompts that are neither hopeless nor solved, a larger train.group_size, train.resample_flat, "
            "or a reward with finer steps"
        )

    def _invalid(self, row: Mapping[str, float]) -> str | None:
        if row.get("invalid", 0.0) < 1:
            return None
        return "no picture of this iteration could be scored, so nothing was learned from it: look at the reward"

    def _collapse(self, row: Mapping[str, float]) -> str | None:
        """The mean reward of the last rows is one spread of single pictures under the best it has been."""
        if "reward" not in row:
            return None
        self._rewards.append(row["reward"])
        if len(self._spreads) < WINDOW:
            self._spreads.append(row.get("reward_std", 0.0))
        if len(self._rewards) < WINDOW:
            return None
        mean, spread = fmean(self._rewards), fmean(self._spreads)
        self._best = max(self._best, mean)
        if spread <= 0 or self._best - mean < spread:
            return None
        return (
            f"the reward has fallen to {mean:.3g}, from {self._best:.3g}: the policy is collapsing; try a lower "
            "train.lr, or a fresh run with more grpo.beta or anchor.beta to hold it"
        )

    def _clipped(self, row: Mapping[str, float]) -> str | None:
        if self._least("clip_fraction", row, CLIPPED_ROWS) < CLIPPED:
            return None
        return (
            f"for {CLIPPED_ROWS} iterations {CLIPPED:.0%} of the rows or more were clipped: the policy moves too far "
            "within an iteration; try a lower train.lr, fewer train.updates, or a wider clip range"
        )

    def _explosion(self, name: str, row: Mapping[str, float]) -> str | None:
        before = self._recent.setdefault(name, deque(maxlen=2 * WINDOW))
        usual = median(before) if len(before) >= WINDOW else None
        before.append(row[name])
        if not usual or usual <= 0 or row[name] < EXPLOSION * usual:
            return None
        return (
            f"{name} is {row[name]:.3g}, {row[name] / usual:.0f} times what it was: try a lower train.lr, "
            "a lower train.max_grad_norm, or more grpo.beta or anchor.beta"
        )

    def _least(self, name: str, row: Mapping[str, float], rows: int) -> float:
        """The least of the last ``rows`` values; 0 as long as there are fewer."""
        if name not in row:
            return 0.0
        recent = self._recent.setdefault(name, deque(maxlen=rows))
        recent.append(row[name])
        return min(recent) if len(recent) == rows else 0.0
