"""Scoring the pictures of a rollout in a background thread, while the next ones are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.system.threads import Worker
from flowopd_cli.train.collect import Scorer

MOST_WAITING = 4  # batches in memory when rewards are slower than drawing


class InBackground:
    """A :class:`~flowopd_cli.train.grading.Scoring` in one thread: a reward is never called twice at once."""

    def __init__(self, score: Scorer) -> None:
        @torch.no_grad()
        def score_batch(batch: tuple[Tensor, Sequence[Prompt]]) -> RewardResult:
            return score(*batch)

        self._worker = Worker(score_batch, MOST_WAITING, same_device())

    def submit(self, images: Float[Tensor, "b 3 H W"], prompts: Sequence[Prompt]) -> None:
        """Queue a batch; blocks while ``MOST_WAITING`` batches wait. Raises the error of an earlier batch."""
        self._worker.submit((images, prompts))

    def result(self) -> RewardResult:
        """All scores, in the order of the pictures; raises the error of a batch."""
        return RewardResult.cat(self._worker.results())


def same_device() -> Callable[[], None]:
    """A function that selects, in another thread, the CUDA device current here."""
    if not torch.cuda.is_initialized():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())
