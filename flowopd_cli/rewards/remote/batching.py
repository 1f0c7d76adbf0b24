"""One thread that scores, and a queue before it that joins what several callers wait for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal, cleaned, one_line

Score = Callable[[Sequence[Image.Image], Sequence[dict[str, Any]]], Answer]


@dataclass(eq=False)
class Job:
    """What one request wants scored, as long as somebody ``wanted`` it."""

    pictures: list[Image.Image]
    prompts: list[dict[str, Any]]
    wanted: Callable[[], bool]
    future: Future[Answer] = field(default_factory=Future)
    started: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def pixels(self) -> int:
        """What it holds in memory, a third of its bytes."""
        return sum(picture.width * picture.height for picture in self.pictures)


class Batcher:
    """Joins waiting requests up to ``max_batch`` pictures, after ``linger`` seconds at most for more to come.

    A request is never split, and one whose caller has gone by its turn is dropped. When a joined batch fails, each of
    its requests is scored by itself, so that one caller's mistake stays its own.
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
            return sum(map(len, self._jobs))

    @property
    def alive(self) -> bool:
        """Whether there is somebody to score what waits."""
        return self._thread.is_alive()

    def submit(
        self, pictures: list[Image.Image], prompts: list[dict[str, Any]], wanted: Callable[[], bool] = lambda: True
    ) -> Answer:
        """Scores of a request, when its turn has come and it is still ``wanted``.

        Raises:
            Refusal: the queue is full or too slow, the caller has gone, or the reward gave wrong lengths.
            Exception: whatever the reward raised.
        """
        job = Job(pictures, prompts, wanted)
        with self._change:
            if self._closed or not self.alive:
                raise Refusal(503, "this worker is stopping")
            held = sum(other.pixels for other in self._jobs)
            if held and held + job.pixels > self._limits.waiting_pixels:
                raise Refusal(503, f"{self.waiting} pictures of {held} pixels wait already")
            self._jobs.append(job)
            self._change.notify_all()
        if not job.started.wait(self._limits.queue_seconds) and job.future.cancel():
            with self._change:
                if job in self._jobs:
                    self._jobs.remove(job)
            raise Refusal(503, f"waited {self._limits.queue_seconds:g} s in the queue")
        try:
            return job.future.result()
        except CancelledError as error:
            raise Refusal(408, "the caller has gone") from error

    def close(self) -> None:
        """Take no more; what waits is still scored."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _run(self) -> None:
        while jobs := self._gather():
            for job in jobs:
                if not job.wanted():
                    job.future.cancel()
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            for job in jobs:
                job.started.set()
            if running:
                self._score(running)

    def _gather(self) -> list[Job]:
        """The next batch; nothing only when closed. While it lingers, what waited may give up: then it waits anew."""
        with self._change:
            taken: list[Job] = []
            while not taken and not (self._closed and not self._jobs):
                self._change.wait_for(lambda: self._jobs or self._closed)
                self._linger_for_more()
                while self._jobs and (not taken or sum(map(len, taken)) + len(self._jobs[0]) <= self._max_batch):
                    taken.append(self._jobs.popleft())
            return taken

    def _linger_for_more(self) -> None:
        until = time.monotonic() + self._linger
        while 0 < self.waiting < self._max_batch and not self._closed and (left := until - time.monotonic()) > 0:
            self._change.wait(left)

    def _score(self, jobs: list[Job]) -> None:
        pictures = [picture for job in jobs for picture in job.pictures]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            answer = cleaned(self._score_all(pictures, prompts), len(pictures))
        except BaseException as error:  # a SystemExit too: it would end this thread, and nobody would be answered
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
