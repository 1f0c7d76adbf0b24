"""Scores the pictures of an evaluation in a background thread, while the next ones are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.folder import Picture
from flowopd_cli.stages.evaluation.journal import Journal, Scored
from flowopd_cli.stages.evaluation.requests import PictureRequest
from flowopd_cli.stages.training.scoring import same_device
from flowopd_cli.suites.base import Suite, score
from flowopd_cli.system.threads import Worker

MOST_WAITING = 4  # batches in memory when scoring is slower than drawing

Batch = tuple[Sequence[PictureRequest], Sequence[Picture]]


class Scorer:
    """Scores batches of pictures, one after the other, and adds their rows to the journal."""

    def __init__(self, suites: Sequence[Suite], rewards: Mapping[str, Reward], journal: Journal) -> None:
        self._suites = {suite.name: suite for suite in suites}
        self._rewards = rewards
        self._journal = journal
        self._worker: Worker[Batch, list[Scored]] = Worker(self._score, MOST_WAITING, same_device())

    def submit(self, requests: Sequence[PictureRequest], pictures: Sequence[Picture]) -> None:
        """Queue a batch; blocks while ``MOST_WAITING`` batches wait. Raises the error of an earlier batch."""
        self._worker.submit((requests, pictures))

    def finish(self) -> list[Scored]:
        """The rows of all batches."""
        return [row for rows in self._worker.results() for row in rows]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop the batches that still wait."""
        self._worker.cancel()

    @torch.no_grad()
    def _score(self, batch: Batch) -> list[Scored]:
        requests, pictures = batch
        rows: list[Scored] = []
        for name, suite in self._suites.items():
            for part in _by_size([i for i, request in enumerate(requests) if name in request.suites], pictures):
                prompts = [requests[i].prompt for i in part]
                indices = [requests[i].place.index for i in part]
                images = torch.stack([pictures[i] for i in part])
                rows += [(name, row) for row in score(suite, self._rewards[name], images, prompts, indices)]
        self._journal.add(requests, rows)
        return rows


def _by_size(indices: Sequence[int], pictures: Sequence[Picture]) -> Iterator[list[int]]:
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        sizes.setdefault(tuple(pictures[index].shape), []).append(index)
    yield from sizes.values()
