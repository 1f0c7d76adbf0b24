"""What a worker does behind its handlers: the reward when it is loaded, its queue, the requests under way."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from flowopd_cli.errors import RewardError, printable, redacted
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.batching import Batcher
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal


class Scorer(Protocol):
    """What a worker serves. ``info`` has ``reward``; ``package``, ``weights``, ``options``, ``low``, ``high``,
    ``exact`` and whatever else its clients should know.
    """

    info: Mapping[str, Any]

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """Score RGB pictures against prompts ``{"id", "text", "task", "metadata"}``."""
        ...

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Raise :class:`Refusal` (422) for prompts that could not be scored."""
        ...


@dataclass(frozen=True)
class Settings:
    """Where a worker listens and how it works. ``watch_parent`` ends it with the process that started it."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    max_batch: int = 32
    linger: float = 0.01
    grace: float = 30.0
    watch_parent: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse times by which every request would have left the queue before its turn.

        Raises:
            RewardError: the queue's seconds are not above those that a batch lingers.
        """
        if not 0 <= self.linger < self.limits.queue_seconds < threading.TIMEOUT_MAX:
            raise RewardError(
                f"--queue-seconds {self.limits.queue_seconds:g} must be above --linger {self.linger:g}, "
                "and that not below 0: a request may not have to leave before its batch is complete"
            )


class Service:
    """The state that all connections share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.info: dict[str, Any] = {}
        self._scorer: Scorer | None = None
        self._batcher: Batcher | None = None
        self._busy = 0
        self._idle = threading.Condition()

    @property
    def ready(self) -> bool:
        """Whether the reward is loaded, and the thread that asks it alive."""
        return self._batcher is not None and self._batcher.alive

    def start(self, scorer: Scorer) -> None:
        """Be ready with this scorer."""
        settings, info = self.settings, wire.plain(dict(scorer.info))
        mark = wire.fingerprint(info["reward"], info.get("weights", {}), info.get("options", {}))
        self.info = {"protocol": wire.PROTOCOL, "fingerprint": mark, "limits": settings.limits.told(), **info}
        self._scorer = scorer
        self._batcher = Batcher(scorer, max_batch=settings.max_batch, linger=settings.linger, limits=settings.limits)

    def finish(self) -> None:
        """Wait for the requests under way, as long as the settings' grace lasts, and take no more."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._busy, self.settings.grace):
                self.log(f"stopped with {self._busy} requests unfinished")
        if self._batcher is not None:
            self._batcher.close()

    def health(self) -> dict[str, Any]:
        """Alive, ready, and how many pictures wait."""
        return {"alive": True, "ready": self.ready, "waiting": self._batcher.waiting if self._batcher else 0}

    def describe(self) -> dict[str, Any]:
        """The answer to ``/info``.

        Raises:
            Refusal: the reward is still being loaded.
        """
        if not self.ready:
            raise Refusal(
                503, "the reward is still being loaded" if self._batcher is None else "this worker is stopping"
            )
        return self.info

    def post(self, path: str, body: bytes, wanted: Callable[[], bool]) -> dict[str, Any]:
        """The answer to ``/score`` or ``/check``, unless it is no longer ``wanted`` when its turn comes.

        Raises:
            Refusal: the request is not one that can be answered.
            Exception: whatever the reward raised.
        """
        reward = str(self.describe()["reward"])
        mark = {name: self.info[name] for name in ("protocol", "reward", "fingerprint")}
        return {**mark, **(self._check(body, reward) if path == wire.CHECK else self._score(body, reward, wanted))}

    def enter(self) -> None:
        """One more request under way.

        Raises:
            Refusal: there are too many.
        """
        with self._idle:
            if self._busy >= self.settings.limits.requests:
                raise Refusal(503, f"{self._busy} requests are under way already")
            self._busy += 1

    def leave(self) -> None:
        """One less."""
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()

    def log(self, text: str) -> None:
        """One line on stderr; what no terminal should obey is written out."""
        print(f"{time.strftime('%H:%M:%S')} {printable(redacted(text))}", file=sys.stderr, flush=True)

    def _check(self, body: bytes, reward: str) -> dict[str, Any]:
        prompts = wire.read_tree(body, reward).get("prompts")
        if not isinstance(prompts, list):
            raise Refusal(400, "prompts: want a list")
        found = [wire.read_prompt(tree, f"prompts.{i}") for i, tree in enumerate(prompts)]
        try:
            if self._scorer is not None:
                self._scorer.check(found)
        except Refusal as refusal:
            return {"ok": False, "error": str(refusal)}
        return {"ok": True, "error": None}

    def _score(self, body: bytes, reward: str, wanted: Callable[[], bool]) -> dict[str, Any]:
        started = time.monotonic()
        pictures, prompts = wire.read_request(body, reward, self.settings.limits)
        if not pictures or self._batcher is None:
            return {"total": [], "scores": {}, "valid": [], "details": []}
        answer = self._batcher.submit(pictures, prompts, wanted)
        self.log(f"scored {len(pictures)} pictures in {time.monotonic() - started:.2f} s")
        return {"total": answer.total, "scores": answer.scores, "valid": answer.valid, "details": answer.details}
