"""Scoring the pictures of an evaluation while others are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.folder import Picture
from flowopd_cli.stages.evaluation.journal import Journal, Scored
from flowopd_cli.stages.evaluation.requests import Wanted
from flowopd_cli.suites.base import Suite, score

WAITING = 4  # batches of pictures in memory, at most, when scoring is slower than drawing


class Scorer:
    """Scores batches of pictures in a thread of its own, while the next ones are drawn."""

    def __init__(self, suites: Sequence[Suite], rewards: Mapping[str, Reward], journal: Journal) -> None:
        self._suites = {suite.name: suite for suite in suites}
        self._rewards = rewards
        self._journal = journal
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flowopd-score")
        self._pending: list[Future[list[Scored]]] = []
        self.rows: list[Scored] = []

    def submit(self, wanted: Sequence[Wanted], pictures: Sequence[Picture]) -> None:
        """Take a batch, once few enough are waiting; an error of an earlier one is raised here."""
        self._collect(WAITING)
        self._pending.append(self._pool.submit(self._score, list(wanted), list(pictures)))

    def finish(self) -> list[Scored]:
        """All rows so far, each with its suite's name."""
        self._collect(0)
        return self.rows

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what is still waiting."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, most: int) -> None:
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self.rows += self._pending.pop(0).result()

    @torch.no_grad()
    def _score(self, wanted: list[Wanted], pictures: list[Picture]) -> list[Scored]:
        rows: list[Scored] = []
        for name, suite in self._suites.items():
            for part in _of_one_size([i for i, w in enumerate(wanted) if name in w.suites], pictures):
                prompts = [wanted[i].prompt for i in part]
                indices = [wanted[i].place.index for i in part]
                images = torch.stack([pictures[i] for i in part])
                rows += [(name, row) for row in score(suite, self._rewards[name], images, prompts, indices)]
        self._journal.add(wanted, rows)
        return rows


def _of_one_size(rows: Sequence[int], pictures: Sequence[Picture]) -> Iterator[list[int]]:
    sizes: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        sizes.setdefault(tuple(pictures[row].shape), []).append(row)
    yield from sizes.values()
