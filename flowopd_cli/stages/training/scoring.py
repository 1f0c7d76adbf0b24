"""Scoring the pictures of a rollout while others are drawn, in one thread."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.system.threads import Background
from flowopd_cli.train.collect import Scorer

WAITING = 4  # batches of pictures kept at most while rewards are slower than drawing


class InBackground:
    """A :class:`~flowopd_cli.train.grading.Scoring` in a thread of its own, on the device of the thread that made it.

    One batch after the other, in their order: a reward that holds state or is not made for threads is never asked
    twice at once.
    """

    def __init__(self, score: Scorer) -> None:
        self._score = score
        self._todo: queue.Queue[tuple[Tensor, Sequence[Prompt]] | None] = queue.Queue(WAITING)
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._worker = Background(self._work)

    def submit(self, images: Float[Tensor, "b 3 H W"], prompts: Sequence[Prompt]) -> None:
        """Take a batch, once few are waiting and no earlier one has failed; else its error is raised here."""
        self._put((images, prompts))

    def result(self) -> RewardResult:
        """All scores, in the order of the pictures; the error of a batch is raised here."""
        self._put(None)
        return RewardResult.cat(self._worker.result())

    def _put(self, item: tuple[Tensor, Sequence[Prompt]] | None) -> None:
        while True:
            if self._worker.failed:
                self._worker.result()
            with suppress(queue.Full):
                return self._todo.put(item, timeout=0.2)

    @torch.no_grad()
    def _work(self) -> list[RewardResult]:
        if self._device is not None:  # a thread has a current device of its own
            torch.cuda.set_device(self._device)
        return [self._score(images, prompts) for images, prompts in iter(self._todo.get, None)]
