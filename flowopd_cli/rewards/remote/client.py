"""The client of scoring workers: a reward in another process or on another machine.

A score that did not come is never a number: the picture is invalid, or the run stops with one line (``on_error``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.http import RETRYABLE, EndpointError, Patience, Unusable, get_json, post_json
from flowopd_cli.rewards.remote.protocol import Answer, Refusal
from flowopd_cli.rewards.remote.server import TOKEN_ENV
from flowopd_cli.rewards.remote.worker_info import WorkerMismatch, info_of, introduced, shown
from flowopd_cli.system.threads import in_parallel

T = TypeVar("T")
ON_ERROR = ("retry", "skip", "fail")
TOKEN_WANTED = (401, 403)
MISMATCH = 409
CHECKED_AT_ONCE = 1000
REST_SECONDS = 60.0
HEADROOM = 4096
log = logging.getLogger("flowopd.rewards")


@dataclass(frozen=True)
class Chunk:
    """Pictures of one request: base64 PNG and prompts as they travel."""

    pngs: list[str]
    prompts: list[dict[str, Any]]


class RemoteReward(Reward):
    """Scores by workers at ``url`` (one, or several with commas between them that share the work).

    ``on_error`` says what happens when a worker fails: ``retry`` tries again ``retries`` times with growing pauses and
    then stops the run, ``skip`` does the same and then leaves the pictures out as invalid, ``fail`` asks no worker
    twice. ``timeout`` bounds one request in seconds, ``batch`` its pictures. A token comes from the environment
    variable ``token_env``. ``reward`` is the name that the worker must serve, ``start`` the command that starts one.
    """

    concurrent = True

    def __init__(
        self,
        url: str,
        *,
        token_env: str = TOKEN_ENV,
        timeout: float = 120.0,
        retries: int = 4,
        on_error: str = "retry",
        batch: int = 32,
        backoff: float = 0.5,
        reward: str | None = None,
        start: str = "",
    ) -> None:
        """Ask every worker who it is.

        Raises:
            RewardError: no worker answers, one is of another kind than the rest, or an option is wrong.
        """
        if on_error not in ON_ERROR:
            raise RewardError(f"remote: on_error {on_error!r} is not one of {', '.join(ON_ERROR)}")
        if timeout <= 0 or retries < 0 or batch < 1:
            raise RewardError("remote: timeout and batch must be above 0, retries not below")
        self.urls = tuple(part.strip().rstrip("/") for part in str(url).split(",") if part.strip())
        self.on_error, self.batch, self._start, self._token_env = on_error, batch, start, token_env
        self._patience = Patience(timeout, 0 if on_error == "fail" else retries, backoff)
        self._resting: dict[str, float] = {}
        self._turn, self._lock, self._failing = 0, threading.Lock(), False
        self.worker = self._meet(reward)
        self.info = info_of(self.worker)
        self.weights = {**self.worker.get("weights", {}), "worker": str(self.worker.get("package", "?"))}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Let the worker refuse prompts that it could not score.

        Raises:
            PromptError: it does.
            RewardError: it does not answer.
        """
        for start in range(0, len(prompts), CHECKED_AT_ONCE):
            part = [wire.prompt_tree(prompt) for prompt in prompts[start : start + CHECKED_AT_ONCE]]
            body = {"protocol": wire.PROTOCOL, "reward": self.worker["reward"], "prompts": part}
            try:
                answer = self._ask(wire.CHECK, body, dict)
            except EndpointError as error:
                self._stop(error)
            if not answer.get("ok"):
                raise PromptError(str(answer.get("error") or "the worker refuses the prompts"))

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures, which travel as 8-bit PNG; several workers score at the same time.

        Raises:
            RewardError: a worker did not answer, or not by the protocol, and ``on_error`` is not ``skip``.
            WorkerMismatch: a worker has become another.
        """
        pngs = [wire.encode_png(picture) for picture in to_pil(images)]
        most = self._most(images.shape[-1] * images.shape[-2])
        chunks = list(self._chunks(pngs, [wire.prompt_tree(prompt) for prompt in prompts], most))
        silent = threading.Event()
        tasks = [partial(self._score, chunk, silent) for chunk in chunks]
        return joined(in_parallel(tasks, workers=len(self.urls)))

    def _score(self, chunk: Chunk, silent: threading.Event) -> Answer:
        """One request, unless those before it in this call found the workers ``silent`` until their time was over."""
        count = len(chunk.pngs)
        if silent.is_set():
            return self._skipped(count, "not asked, for the workers had just let a request wait in vain")
        body = wire.score_request(self.worker["reward"], chunk.pngs, chunk.prompts)
        try:
            answer = self._ask(wire.SCORE, body, lambda tree: _answer(tree, count))
        except EndpointError as error:
            if self.on_error != "skip" or error.status in (*TOKEN_WANTED, MISMATCH):
                self._stop(error)
            if error.slow:
                silent.set()
            return self._skipped(count, str(error))
        if self._failing:
            log.warning("reward %s: the worker answers again", self.info.name)
        self._failing = False
        return answer

    def _skipped(self, count: int, reason: str) -> Answer:
        if not self._failing:
            log.warning("reward %s: pictures are left out of their groups: %s", self.info.name, reason)
        self._failing = True
        return Answer([None] * count, {}, [False] * count, [{"error": reason} for _ in range(count)])

    def _most(self, pixels: int) -> int:
        """Pictures of that many pixels that the worker takes in one request."""
        limits = self.worker.get("limits", {})
        fitting = int(limits.get("request_pixels", wire.Limits.request_pixels)) // max(pixels, 1)
        return max(1, min(self.batch, int(limits.get("pictures", self.batch)), fitting))

    def _chunks(self, pngs: Sequence[str], prompts: Sequence[dict[str, Any]], most: int) -> Iterator[Chunk]:
        """Requests of ``most`` pictures at most and within the worker's limit of bytes."""
        room = int(self.worker.get("limits", {}).get("body_bytes", wire.Limits.body_bytes)) - HEADROOM
        start, size = 0, 0
        for i, (png, prompt) in enumerate(zip(pngs, prompts, strict=True)):
            weight = len(png) + len(wire.to_bytes(prompt)) + 64
            if i > start and (i - start >= most or size + weight > room):
                yield Chunk(list(pngs[start:i]), list(prompts[start:i]))
                start, size = i, 0
            size += weight
        if pngs:
            yield Chunk(list(pngs[start:]), list(prompts[start:]))

    def _ask(self, path: str, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """What ``read`` makes of an answer from any worker: each is asked once, those that failed lately last, then
        all again with pauses. After a request that was given up, nobody is asked twice until one is answered.

        Raises:
            EndpointError: none answers, or a status says that more attempts would not help.
            WorkerMismatch: another reward answers.
        """
        order, headers, slow = self._order(), self._headers(), False
        once = replace(self._patience, retries=0)
        patience = once if self._failing else self._patience
        for url in order[:-1]:
            try:
                return post_json(url, path, body, headers, once, lambda tree: read(self._same(tree)))
            except EndpointError as error:
                if error.status is not None and error.status not in RETRYABLE and error.status != 200:
                    raise
                slow = slow or error.slow
                self._resting[url] = time.monotonic() + REST_SECONDS
        rest = [*order[-1:], *order[:-1]] if patience.retries else order[-1:]
        try:
            return post_json(rest, path, body, headers, patience, lambda tree: read(self._same(tree)))
        except EndpointError as error:
            error.slow = error.slow or slow
            raise

    def _order(self) -> list[str]:
        """The workers in turn, those that failed within the last minute at the end."""
        with self._lock:
            self._turn += 1
            turned = [self.urls[(self._turn + i) % len(self.urls)] for i in range(len(self.urls))]
        now = time.monotonic()
        return sorted(turned, key=lambda url: self._resting.get(url, 0.0) > now)

    def _same(self, tree: Any) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise Unusable(f"the answer is {type(tree).__name__}, not an object")
        for name in ("protocol", "reward", "fingerprint"):
            if tree.get(name) != self.worker.get(name):
                raise WorkerMismatch(
                    f"reward {self.info.name}: a worker has become another: "
                    f"its {name} is {wire.shown(tree.get(name))}, it was {self.worker.get(name)!r}; "
                    "scores of the two cannot be compared"
                )
        return tree

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self._token_env)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _meet(self, wanted: str | None) -> dict[str, Any]:
        """What the workers say of themselves, which must agree; those that do not answer may come later.

        All are asked once; only when nobody answers are they asked with patience.
        """
        found = self._introductions(wanted, replace(self._patience, retries=0))
        if self._patience.retries and all(isinstance(other, EndpointError) for other in found.values()):
            found = self._introductions(wanted, self._patience)
        absent = {url: error for url, error in found.items() if isinstance(error, EndpointError)}
        for url, error in absent.items():
            if error.status in TOKEN_WANTED:
                self._stop(error)
            self._resting[url] = time.monotonic() + REST_SECONDS
        met = [(url, other) for url, other in found.items() if not isinstance(other, EndpointError)]
        if not met:
            self._stop([*absent.values(), EndpointError("remote: no URL is named")][0])
        (first, worker), *others = met
        for url, other in others:
            if other["fingerprint"] != worker["fingerprint"]:
                raise WorkerMismatch(
                    f"{url} serves {shown(other)}, {first} {shown(worker)}: their scores cannot be compared"
                )
        for error in absent.values():
            log.warning("reward %s: %s", worker["reward"], error)
        return worker

    def _introductions(self, wanted: str | None, patience: Patience) -> dict[str, dict[str, Any] | EndpointError]:
        """What every worker says of itself, or why it does not; all are asked at the same time."""

        def introduce(url: str) -> dict[str, Any] | EndpointError:
            try:
                return introduced(url, get_json(url, wire.INFO, self._headers(), patience), wanted)
            except EndpointError as error:
                return error

        given = in_parallel([partial(introduce, url) for url in self.urls], workers=len(self.urls))
        return dict(zip(self.urls, given, strict=True))

    def _stop(self, error: Exception) -> NoReturn:
        """One line that says what failed and what to do."""
        name = getattr(getattr(self, "info", None), "name", "remote")
        status = getattr(error, "status", None)
        if status == MISMATCH:
            raise WorkerMismatch(f"reward {name}: {error}") from error
        way_out = f"; set {self._token_env} to the worker's token" if status in TOKEN_WANTED else ""
        if status is None and self._start:
            way_out = f"; start it with: {self._start}"
        raise RewardError(f"reward {name}: {error}{way_out}") from error


def _answer(tree: dict[str, Any], count: int) -> Answer:
    try:
        return wire.read_answer(tree, count)
    except Refusal as refusal:
        raise Unusable(str(refusal)) from refusal


def joined(answers: Sequence[Answer]) -> RewardResult:
    """Answers one after the other; NaN where there is no number, and every total that is not valid is NaN."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.scores))
    total = [value for answer in answers for value in answer.total]
    valid = torch.tensor([good for answer in answers for good in answer.valid], dtype=torch.bool)
    details = tuple(detail for answer in answers for detail in answer.details)
    columns = {name: _floats([v for a in answers for v in a.scores.get(name, [None] * len(a.total))]) for name in names}
    return RewardResult(torch.where(valid, _floats(total), torch.nan), columns, valid, details)


def _floats(values: Sequence[float | None]) -> Float[Tensor, " B"]:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
