"""``remote:URL``: a reward scored by workers at one or several addresses, which share the work and replace one another.

A picture without a valid score never scores zero: it is invalid, or the run stops with a one-line error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import torch
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.http import EndpointError, Endpoints
from flowopd_cli.rewards.remote.protocol import Answer, WorkerInfo
from flowopd_cli.rewards.remote.settings import DEQA_PORT, TOKEN_ENV
from flowopd_cli.system.arguments import OptionsOf
from flowopd_cli.system.threads import in_parallel

T = TypeVar("T")
ON_ERROR = ("retry", "skip", "fail")
TOKEN_NEEDED = (401, 403)
MISMATCH = 409
CHECKED_AT_ONCE = 1000
ENVELOPE_BYTES = 4096
log = logging.getLogger("flowopd.rewards")


class WorkerMismatch(RewardError):
    """A worker has another protocol, reward or weights: retrying cannot help, so ``skip`` does not skip it."""


class RemoteReward(Reward):
    """Scores by workers at ``url`` (one, or several with commas between them that share the work).

    ``on_error`` is the reaction to a failing worker: ``retry`` tries ``retries`` more times with growing pauses, then
    stops the run; ``skip`` retries likewise, then marks the pictures invalid; ``fail`` tries no worker twice.
    ``timeout`` is the limit of one request in seconds, ``batch`` its maximum of pictures. The token comes from the
    variable ``token_env``.
    """

    concurrent = True
    served: str | None = None  #: the reward that the worker must serve; ``None``: any

    def __init__(
        self,
        url: str,
        *,
        token_env: str = TOKEN_ENV,
        timeout: float = 120.0,
        retries: int = 4,
        on_error: Literal["retry", "skip", "fail"] = "retry",
        batch: int = 32,
        backoff: float = 0.5,
    ) -> None:
        """Read the description of every worker; ``RewardError`` when none answers or they serve different rewards."""
        if on_error not in ON_ERROR:
            raise RewardError(f"remote: on_error {on_error!r} is not one of {', '.join(ON_ERROR)}")
        if timeout <= 0 or retries < 0 or batch < 1:
            raise RewardError("remote: timeout and batch must be above 0, retries not below")
        self.on_error, self.batch, self._token_env = on_error, batch, token_env
        token = os.environ.get(token_env)
        self._endpoints = Endpoints(
            [part.strip() for part in str(url).split(",") if part.strip()],
            {"Authorization": f"Bearer {token}"} if token else {},
            timeout,
            0 if on_error == "fail" else retries,
            backoff,
        )
        self._name = self.served or "remote"
        self.worker = self._connect()
        self._name = self.worker.reward
        self.info = reward_info(self.worker)
        self.weights = {**self.worker.weights, "worker": self.worker.package}
        self.engine = next((str(self.weights[name]) for name in protocol.ENGINES if name in self.weights), "")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Ask the worker to check the prompts; ``PromptError`` if it cannot score one."""
        for start in range(0, len(prompts), CHECKED_AT_ONCE):
            records = [protocol.prompt_record(prompt) for prompt in prompts[start : start + CHECKED_AT_ONCE]]
            try:
                answer = self._post(protocol.CHECK, {"prompts": records}, self._verify)
            except EndpointError as error:
                self._stop(error)
            if not answer.get("ok"):
                raise PromptError(str(answer.get("error") or "the worker refuses the prompts"))

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures, which travel as 8-bit PNG; several workers score at the same time.

        Raises :class:`RewardError`: a worker did not answer, or not by the protocol, and ``on_error`` is not ``skip``.
        Raises :class:`WorkerMismatch`: another reward now answers at a worker's address.
        """
        items = [protocol.score_item(*pair) for pair in zip(to_pil(images), prompts, strict=True)]
        limits, pixels = self.worker.limits, max(1, images.shape[-1] * images.shape[-2])
        room = (limits.body_bytes - ENVELOPE_BYTES) // max((len(json.dumps(item)) + 2 for item in items), default=1)
        count = max(1, min(self.batch, protocol.MAX_PICTURES, limits.request_pixels // pixels, room))
        timed_out = threading.Event()
        tasks = [partial(self._score, items[i : i + count], timed_out) for i in range(0, len(items), count)]
        return reward_result(in_parallel(tasks, workers=len(self._endpoints.urls)))

    def _score(self, items: list[dict[str, Any]], timed_out: threading.Event) -> Answer:
        """The scores of one request; it is not sent after an earlier one of this call has ``timed_out``."""

        def parse(tree: Any) -> Answer:
            return TypeAdapter(Answer).validate_python(self._verify(tree)).require(len(items))

        reason, failing = "not sent, because an earlier request of this call timed out", self._endpoints.failing
        if not timed_out.is_set():
            try:
                answer = self._post(protocol.SCORE, {"items": items}, parse)
            except EndpointError as error:
                if self.on_error != "skip" or error.status in (*TOKEN_NEEDED, MISMATCH):
                    self._stop(error)
                if error.slow:
                    timed_out.set()
                reason = str(error)
                if not failing:
                    log.warning("reward %s: pictures are left out of their groups: %s", self._name, reason)
            else:
                if failing:
                    log.warning("reward %s: the worker answers again", self._name)
                return answer
        return Answer([None] * len(items), {}, [False] * len(items), [{"error": reason} for _ in items])

    def _post(self, path: str, content: Mapping[str, Any], parse: Callable[[Any], T]) -> T:
        body = {"protocol": protocol.PROTOCOL, "reward": self.worker.reward, **content}
        return self._endpoints.request(path, body, parse)

    def _verify(self, tree: Any) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise ValueError(f"the answer is {type(tree).__name__}, not an object")
        for name in ("protocol", "reward", "fingerprint"):
            if tree.get(name) != getattr(self.worker, name):
                change = f"its {name} is {protocol.excerpt(tree.get(name))}, it was {getattr(self.worker, name)!r}"
                raise WorkerMismatch(
                    f"reward {self._name}: the worker has changed: {change}; scores cannot be compared"
                )
        return tree

    def _connect(self) -> WorkerInfo:
        """The description that all workers share. Only when none of them answers are they tried again."""
        urls, workers, failures = self._endpoints.urls, dict[str, WorkerInfo](), list[EndpointError]()
        for retries in sorted({0, self._endpoints.retries}):
            if not workers:
                tasks = [partial(self._describe, url, retries) for url in urls]
                results = in_parallel(tasks, workers=len(urls))
                workers = {u: result for u, result in zip(urls, results, strict=True) if isinstance(result, WorkerInfo)}
                failures = [result for result in results if isinstance(result, EndpointError)]
        denied = [error for error in failures if error.status in TOKEN_NEEDED]
        if denied or not workers:
            self._stop([*denied, *failures][0])
        first, worker = next(iter(workers.items()))
        for url, other in workers.items():
            if other.fingerprint != worker.fingerprint:
                raise WorkerMismatch(f"{url} serves {other}, {first} {worker}: their scores cannot be compared")
        for error in failures:
            log.warning("reward %s: %s", worker.reward, error)
        return worker

    def _describe(self, url: str, retries: int) -> WorkerInfo | EndpointError:
        try:
            tree = replace(self._endpoints, urls=[url], retries=retries).request(protocol.INFO)
            return worker_info(url, tree, self.served)
        except EndpointError as error:
            return error

    def _stop(self, error: EndpointError) -> NoReturn:
        """Raise a one-line error with the failure and the remedy."""
        if error.status == MISMATCH:
            raise WorkerMismatch(f"reward {self._name}: {error}") from error
        advice = f"; set {self._token_env} to the worker's token" if error.status in TOKEN_NEEDED else ""
        if error.status is None and self.served:
            advice = f"; start it with: flowopd rewards serve {self.served}"
        raise RewardError(f"reward {self._name}: {error}{advice}") from error


class DeQAReward(RemoteReward):
    """``deqa``: picture quality by DeQA-Score, in a worker because its model's code needs an older transformers.

    ``total`` is the score divided by 5 as in training, ``scores["score"]`` is in [1, 5]. ``url`` names one worker or
    several; further options are those of :class:`RemoteReward`.
    """

    info = RewardInfo(
        name="deqa",
        paper="arXiv 2501.11561",
        low=0.2,
        high=1.0,
        license="MIT (code), LLaMA 2 (base of the weights)",
        note="in a worker: flowopd rewards serve deqa",
    )
    served = info.name

    def __init__(
        self, url: str = f"http://127.0.0.1:{DEQA_PORT}", **options: Annotated[Any, OptionsOf(RemoteReward)]
    ) -> None:
        super().__init__(url, **options)


def worker_info(url: str, tree: Any, reward: str | None = None) -> WorkerInfo:
    """A worker's description of itself; ``WorkerMismatch`` when it is not valid or of another reward."""
    try:
        worker = WorkerInfo.model_validate(tree)
    except ValidationError as error:
        raise WorkerMismatch(
            f"{url}: not a scoring worker of protocol {protocol.PROTOCOL} ({protocol.describe_validation(error)}): "
            "install the same flowopd on both sides"
        ) from error
    if reward not in (None, worker.reward):
        raise WorkerMismatch(f"{url}: serves the reward {protocol.excerpt(worker.reward)}, not {reward!r}")
    return worker


def reward_info(worker: WorkerInfo) -> RewardInfo:
    """A worker's description as a ``RewardInfo``."""
    low, high = -math.inf if worker.low is None else worker.low, math.inf if worker.high is None else worker.high
    same = worker.model_dump(include={"paper", "higher_is_better", "license", "exact", "note"})
    return RewardInfo(name=worker.reward, low=low, high=high, **same)


def reward_result(answers: Sequence[Answer]) -> RewardResult:
    """Concatenate answers; missing numbers and invalid totals become NaN."""
    names = list(dict.fromkeys(name for answer in answers for name in answer.scores))
    columns = {name: [v for a in answers for v in a.scores.get(name, [None] * len(a.total))] for name in names}
    return RewardResult(
        _tensor([value for answer in answers for value in answer.total]),
        {name: _tensor(column) for name, column in columns.items()},
        torch.tensor([valid for answer in answers for valid in answer.valid], dtype=torch.bool),
        tuple(detail for answer in answers for detail in answer.details),
    )


def _tensor(values: Sequence[float | None]) -> Float[Tensor, " B"]:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
