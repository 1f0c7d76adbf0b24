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

from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal, one_line

Score = Callable[[Sequence[Image.Image], Sequence[dict[str, Any]]], Answer]


@dataclass(eq=False)
class Job:
    """One request. Cancelling its ``future`` takes it out of the queue."""

    pictures: Sequence[Image.Image]
    prompts: Sequence[dict[str, Any]]
    future: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Joins waiting requests up to ``max_batch`` pictures, and waits at most ``linger`` seconds for more.

    A request is never split. If a joined batch fails, its requests are scored one by one, so that one caller's error
    does not affect the others.
    """

    def __init__(self, score: Score, *, max_batch: int, linger: float, limits: Limits) -> None:
        self._score_all = score
        self._max_batch, self._linger, self._limits = max_batch, linger, limits
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        threading.Thread(target=self._run, name="scoring", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        with self._change:
            return sum(len(job.pictures) for job in self._jobs if not job.future.cancelled())

    def submit(self, pictures: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]) -> Future[Answer]:
        """Queue a request; ``Refusal`` when the queue is full. The future raises what the reward raised."""
        job = Job(pictures, prompts)
        with self._change:
            self._jobs = deque(other for other in self._jobs if not other.future.cancelled())
            sizes = [picture.width * picture.height for other in self._jobs for picture in other.pictures]
            pixels = sum(picture.width * picture.height for picture in pictures)
            if sizes and sum(sizes) + pixels > self._limits.waiting_pixels:
                raise Refusal(503, f"the queue is full: {len(sizes)} pictures of {sum(sizes)} pixels are waiting")
            self._jobs.append(job)
            self._change.notify_all()
        return job.future

    def _run(self) -> None:
        while True:
            self._score([job for job in self._next_batch() if job.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[Job]:
        batch: list[Job] = []
        with self._change:
            self._change.wait_for(lambda: self._jobs)
            until = time.monotonic() + self._linger
            while self.waiting < self._max_batch and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            size = 0
            while self._jobs and (not batch or size + len(self._jobs[0].pictures) <= self._max_batch):
                batch.append(self._jobs.popleft())
                size += len(batch[-1].pictures)
        return batch

    def _score(self, jobs: list[Job]) -> None:
        pictures = [picture for job in jobs for picture in job.pictures]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            answer = self._score_all(pictures, prompts).require(len(pictures)) if jobs else Answer([])
        except BaseException as error:  # SystemExit too: it would end this thread and leave every caller waiting
            if len(jobs) == 1:
                jobs[0].future.set_exception(error if isinstance(error, Exception) else RuntimeError(one_line(error)))
                return
            for job in jobs:
                self._score([job])
            return
        stop = 0
        for job in jobs:
            start, stop = stop, stop + len(job.pictures)
            job.future.set_result(answer.rows(start, stop))
