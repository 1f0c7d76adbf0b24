"""The client of scoring workers: a reward in another process or on another machine.

A missing score is never a number: the picture is invalid, or the run stops with one line (``on_error``).
"""

from __future__ import annotations

import json
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
from pydantic import ValidationError
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.http import RETRYABLE, EndpointError, InvalidResponse, RetryPolicy, request_json
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal, WorkerInfo
from flowopd_cli.rewards.remote.settings import TOKEN_ENV
from flowopd_cli.system.threads import in_parallel

T = TypeVar("T")
ON_ERROR = ("retry", "skip", "fail")
TOKEN_NEEDED = (401, 403)
MISMATCH = 409
CHECKED_AT_ONCE = 1000
REST_SECONDS = 60.0
ENVELOPE_BYTES = 4096
log = logging.getLogger("flowopd.rewards")


class WorkerMismatch(RewardError):
    """A worker of another protocol, reward or weights: no attempt cures it, so ``skip`` does not skip it."""


@dataclass(frozen=True)
class Chunk:
    """The pictures of one request, in base64 PNG, and their prompts."""

    pngs: Sequence[str]
    prompts: Sequence[dict[str, Any]]


class RemoteReward(Reward):
    """Scores by workers at ``url`` (one, or several with commas between them that share the work).

    ``on_error`` says what happens when a worker fails: ``retry`` tries again ``retries`` times with growing pauses and
    then stops the run, ``skip`` does the same and then leaves the pictures out as invalid, ``fail`` tries no worker
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
        """Read the description of every worker.

        Raises:
            RewardError: no worker answers, they serve different rewards, or an option is wrong.
        """
        if on_error not in ON_ERROR:
            raise RewardError(f"remote: on_error {on_error!r} is not one of {', '.join(ON_ERROR)}")
        if timeout <= 0 or retries < 0 or batch < 1:
            raise RewardError("remote: timeout and batch must be above 0, retries not below")
        self.urls = tuple(part.strip().rstrip("/") for part in str(url).split(",") if part.strip())
        self.on_error, self.batch, self._start, self._token_env = on_error, batch, start, token_env
        self._policy = RetryPolicy(timeout, 0 if on_error == "fail" else retries, backoff)
        self._resting: dict[str, float] = {}
        self._turn, self._lock, self._failing = 0, threading.Lock(), False
        self.worker = self._connect(reward)
        self.info = reward_info(self.worker)
        self.weights = {**self.worker.weights, "worker": self.worker.package}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Let the worker refuse prompts that it could not score.

        Raises:
            PromptError: it does.
            RewardError: it does not answer.
        """
        for start in range(0, len(prompts), CHECKED_AT_ONCE):
            records = [protocol.prompt_record(prompt) for prompt in prompts[start : start + CHECKED_AT_ONCE]]
            body = {"protocol": protocol.PROTOCOL, "reward": self.worker.reward, "prompts": records}
            try:
                answer = self._post(protocol.CHECK, body, dict)
            except EndpointError as error:
                self._stop(error)
            if not answer.get("ok"):
                raise PromptError(str(answer.get("error") or "the worker refuses the prompts"))

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures, which travel as 8-bit PNG; several workers score at the same time.

        Raises:
            RewardError: a worker did not answer, or not by the protocol, and ``on_error`` is not ``skip``.
            WorkerMismatch: another reward now answers at a worker's address.
        """
        pngs = [protocol.encode_png(picture) for picture in to_pil(images)]
        records = [protocol.prompt_record(prompt) for prompt in prompts]
        timed_out = threading.Event()
        chunks = self._chunks(pngs, records, images.shape[-1] * images.shape[-2])
        tasks = [partial(self._score, chunk, timed_out) for chunk in chunks]
        return reward_result(in_parallel(tasks, workers=len(self.urls)))

    def _score(self, chunk: Chunk, timed_out: threading.Event) -> Answer:
        """The scores of one request. It is not sent once an earlier one of this call has ``timed_out``."""
        count = len(chunk.pngs)
        if timed_out.is_set():
            return self._invalid(count, "not sent, because an earlier request of this call timed out")
        body = protocol.score_request(self.worker.reward, chunk.pngs, chunk.prompts)
        try:
            answer = self._post(protocol.SCORE, body, lambda tree: _read_answer(tree, count))
        except EndpointError as error:
            if self.on_error != "skip" or error.status in (*TOKEN_NEEDED, MISMATCH):
                self._stop(error)
            if error.slow:
                timed_out.set()
            return self._invalid(count, str(error))
        if self._failing:
            log.warning("reward %s: the worker answers again", self.info.name)
        self._failing = False
        return answer

    def _invalid(self, count: int, reason: str) -> Answer:
        if not self._failing:
            log.warning("reward %s: pictures are left out of their groups: %s", self.info.name, reason)
        self._failing = True
        return Answer([None] * count, {}, [False] * count, [{"error": reason} for _ in range(count)])

    def _chunks(self, pngs: Sequence[str], prompts: Sequence[dict[str, Any]], pixels: int) -> Iterator[Chunk]:
        """Requests within the worker's limits, for pictures of that many pixels each."""
        limits = self.worker.limits
        fitting = limits.get("request_pixels", Limits.request_pixels) // max(pixels, 1)
        most = max(1, min(self.batch, limits.get("pictures", self.batch), fitting))
        room = limits.get("body_bytes", Limits.body_bytes) - ENVELOPE_BYTES
        start, size = 0, 0
        for i, (png, prompt) in enumerate(zip(pngs, prompts, strict=True)):
            weight = len(png) + len(json.dumps(prompt)) + 64
            if i > start and (i - start >= most or size + weight > room):
                yield Chunk(pngs[start:i], prompts[start:i])
                start, size = i, 0
            size += weight
        if pngs:
            yield Chunk(pngs[start:], prompts[start:])

    def _post(self, path: str, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """The answer of any worker: each is tried once, those that failed lately last, then all again with pauses.
        After a failed call no worker is tried twice until one answers.

        Raises:
            EndpointError: none answers, or a status says that more attempts would not help.
            WorkerMismatch: another reward answers.
        """

        def post(urls: Sequence[str], policy: RetryPolicy) -> T:
            return request_json(urls, path, body, self._headers(), policy, lambda tree: read(self._verify(tree)))

        once = replace(self._policy, retries=0)
        policy = once if self._failing else self._policy
        *others, last = self._order()
        slow = False
        for url in others:
            try:
                return post([url], once)
            except EndpointError as error:
                if error.status not in (None, 200, *RETRYABLE):
                    raise
                slow = slow or error.slow
                self._resting[url] = time.monotonic() + REST_SECONDS
        try:
            return post([last, *others] if policy.retries else [last], policy)
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

    def _verify(self, tree: Any) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise InvalidResponse(f"the answer is {type(tree).__name__}, not an object")
        for name in ("protocol", "reward", "fingerprint"):
            if tree.get(name) != getattr(self.worker, name):
                raise WorkerMismatch(
                    f"reward {self.info.name}: the worker has changed: its {name} is "
                    f"{protocol.excerpt(tree.get(name))}, it was {getattr(self.worker, name)!r}; "
                    "scores of the two cannot be compared"
                )
        return tree

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self._token_env)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _connect(self, reward: str | None) -> WorkerInfo:
        """The description that all workers share. Those that do not answer may come later; only when none does are they
        tried again.
        """
        results = self._descriptions(reward, replace(self._policy, retries=0))
        if self._policy.retries and all(isinstance(result, EndpointError) for result in results):
            results = self._descriptions(reward, self._policy)
        present: list[tuple[str, WorkerInfo]] = []
        absent: list[EndpointError] = []
        for url, result in zip(self.urls, results, strict=True):
            if isinstance(result, WorkerInfo):
                present.append((url, result))
                continue
            if result.status in TOKEN_NEEDED:
                self._stop(result)
            absent.append(result)
            self._resting[url] = time.monotonic() + REST_SECONDS
        if not present:
            self._stop([*absent, EndpointError("remote: no URL is named")][0])
        (first, worker), *others = present
        for url, other in others:
            if other.fingerprint != worker.fingerprint:
                raise WorkerMismatch(f"{url} serves {other}, {first} {worker}: their scores cannot be compared")
        for error in absent:
            log.warning("reward %s: %s", worker.reward, error)
        return worker

    def _descriptions(self, reward: str | None, policy: RetryPolicy) -> list[WorkerInfo | EndpointError]:
        def describe(url: str) -> WorkerInfo | EndpointError:
            try:
                tree = request_json(url, protocol.INFO, headers=self._headers(), policy=policy)
            except EndpointError as error:
                return error
            return worker_info(url, tree, reward)

        return in_parallel([partial(describe, url) for url in self.urls], workers=len(self.urls))

    def _stop(self, error: EndpointError) -> NoReturn:
        """One line that says what failed and what to do."""
        name = getattr(getattr(self, "info", None), "name", "remote")
        if error.status == MISMATCH:
            raise WorkerMismatch(f"reward {name}: {error}") from error
        advice = f"; set {self._token_env} to the worker's token" if error.status in TOKEN_NEEDED else ""
        if error.status is None and self._start:
            advice = f"; start it with: {self._start}"
        raise RewardError(f"reward {name}: {error}{advice}") from error


def worker_info(url: str, tree: Any, reward: str | None = None) -> WorkerInfo:
    """A worker's description of itself, validated.

    Raises:
        WorkerMismatch: it is not a worker, or one of another protocol or reward.
    """
    if not isinstance(tree, dict) or "protocol" not in tree:
        raise WorkerMismatch(f"{url}: is not a scoring worker of flowopd")
    if not protocol.is_supported(tree["protocol"]):
        package = str(tree.get("package", "?"))[: protocol.EXCERPT]
        raise WorkerMismatch(
            f"{url}: speaks protocol {protocol.excerpt(tree['protocol'])} ({package}), we speak {protocol.PROTOCOL}: "
            "install the same flowopd on both sides"
        )
    if reward is not None and tree.get("reward") != reward:
        raise WorkerMismatch(f"{url}: serves the reward {protocol.excerpt(tree.get('reward'))}, not {reward!r}")
    try:
        return WorkerInfo.model_validate(tree)
    except ValidationError as error:
        raise WorkerMismatch(f"{url}: its description is not valid ({protocol.describe_validation(error)})") from error


def reward_info(worker: WorkerInfo) -> RewardInfo:
    """What a worker declares, as a reward of this process would."""
    return RewardInfo(
        name=worker.reward,
        paper=worker.paper,
        low=-float("inf") if worker.low is None else worker.low,
        high=float("inf") if worker.high is None else worker.high,
        higher_is_better=worker.higher_is_better,
        license=worker.license,
        exact=worker.exact,
        note=worker.note,
    )


def _read_answer(tree: dict[str, Any], count: int) -> Answer:
    try:
        return protocol.read_answer(tree, count)
    except Refusal as refusal:
        raise InvalidResponse(str(refusal)) from refusal


def reward_result(answers: Sequence[Answer]) -> RewardResult:
    """Answers one after the other; NaN where there is no number, and every total that is not valid is NaN."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.scores))
    columns = {name: [v for a in answers for v in a.scores.get(name, [None] * len(a.total))] for name in names}
    return RewardResult(
        _tensor([value for answer in answers for value in answer.total]),
        {name: _tensor(column) for name, column in columns.items()},
        torch.tensor([valid for answer in answers for valid in answer.valid], dtype=torch.bool),
        tuple(detail for answer in answers for detail in answer.details),
    )


def _tensor(values: Sequence[float | None]) -> Float[Tensor, " B"]:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
