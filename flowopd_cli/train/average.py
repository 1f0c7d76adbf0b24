"""The moving average of the policy, ``policy_ema``, which is the adapter that a run saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowopd_cli.models.base import FlowModel


def update(model: FlowModel, limit: float, step: int) -> None:
    """Move the average towards the policy of optimizer step n: ``min((1 + n) / (10 + n), limit)`` of it stays."""
    decay = min((1 + step) / (10 + step), limit)  # Flow-GRPO's warm-up of the average
    model.adapters.ema("policy", "policy_ema", decay)


@contextmanager
def completed(model: FlowModel, limit: float, every: int, step: int) -> Iterator[None]:
    """Inside the block the average has all ``step`` optimizer steps, including those since its last update.

    It is restored after the block, so that exports do not change how a run continues.
    """
    if not limit or step % every == 0:
        yield
        return
    before = model.adapters.state("policy_ema")
    update(model, limit, step)
    try:
        yield
    finally:
        model.adapters.load_state("policy_ema", before)
