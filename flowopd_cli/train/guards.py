"""Numerical guards: losses and gradients that are not finite must not be learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowopd_cli.core.types import Loss, StepBatch


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
    """Checks the micro-batches of one optimizer step; ``fault`` and ``batch`` are those of the first bad one."""

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
    norms = torch._foreach_norm(list(tensors), float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).isfinite().all()
