"""One thread that scores, and a queue in front of it that joins the requests of several callers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal, normalize_answer, one_line

Score = Callable[[Sequence[Image.Image], Sequence[dict[str, Any]]], Answer]


@dataclass(eq=False)
class Job:
    """One request. Cancelling its ``future`` takes it out of the queue."""

    pictures: Sequence[Image.Image]
    prompts: Sequence[dict[str, Any]]
    future: Future[Answer] = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def pixels(self) -> int:
        """The memory it holds, in pixels."""
        return sum(picture.width * picture.height for picture in self.pictures)


class Batcher:
    """Joins waiting requests up to ``max_batch`` pictures, and lingers at most ``linger`` seconds for more.

    A request is never split. When a joined batch fails, its requests are scored one by one, so that a mistake of one
    caller reaches no other.
    """

    def __init__(self, score: Score, *, max_batch: int, linger: float, limits: Limits) -> None:
        self._score_all = score
        self._max_batch, self._linger, self._limits = max_batch, linger, limits
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        with self._change:
            return sum(len(job) for job in self._jobs if not job.future.cancelled())

    @property
    def alive(self) -> bool:
        """Whether the scoring thread runs."""
        return self._thread.is_alive()

    def submit(self, pictures: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]) -> Future[Answer]:
        """Queue a request. The future raises what the reward raised, or ``Refusal`` for lists of a wrong length.

        Raises:
            Refusal: the queue is full or closed.
        """
        job = Job(pictures, prompts)
        with self._change:
            if self._closed or not self.alive:
                raise Refusal(503, "this worker is stopping")
            self._jobs = deque(other for other in self._jobs if not other.future.cancelled())
            pixels = sum(other.pixels for other in self._jobs)
            if pixels and pixels + job.pixels > self._limits.waiting_pixels:
                raise Refusal(503, f"the queue is full: {self.waiting} pictures of {pixels} pixels are waiting")
            self._jobs.append(job)
            self._change.notify_all()
        return job.future

    def close(self) -> None:
        """Accept no more requests; those in the queue are still scored."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._score(jobs)

    def _next_batch(self) -> list[Job]:
        """Blocks until there is a batch; empty when the queue is closed."""
        batch: list[Job] = []
        with self._change:
            self._change.wait_for(lambda: self._jobs or self._closed)
            until = time.monotonic() + self._linger
            while self.waiting < self._max_batch and not self._closed and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            while self._jobs and (not batch or sum(map(len, batch)) + len(self._jobs[0]) <= self._max_batch):
                batch.append(self._jobs.popleft())
        return batch

    def _score(self, jobs: list[Job]) -> None:
        pictures = [picture for job in jobs for picture in job.pictures]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            answer = normalize_answer(self._score_all(pictures, prompts), len(pictures))
        except BaseException as error:  # SystemExit too: it would end this thread and leave every caller waiting
            if len(jobs) == 1:
                jobs[0].future.set_exception(error if isinstance(error, Exception) else RuntimeError(one_line(error)))
                return
            for job in jobs:
                self._score([job])
            return
        start = 0
        for job in jobs:
            job.future.set_result(answer.rows(start, start + len(job)))
            start += len(job)
