"""JSON over HTTP with bounded retries and failover, for rewards behind an endpoint (``vlm``, ``remote``)."""

from __future__ import annotations

import itertools
import json
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.protocol import one_line
from flowopd_cli.rewards.remote.settings import is_loopback
from flowopd_cli.system.threads import Background

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
EXCERPT = 200
REST_SECONDS = 60.0
PLAIN = {"Accept-Encoding": "identity"}
_JITTER = random.Random()  # separate, so that the seeded generators of a run stay as they are


class EndpointError(RewardError):
    """No endpoint gave a usable answer. ``status`` is the last HTTP status, ``None`` where an endpoint sent none.

    ``slow`` says that an endpoint was given up at its timeout.
    """

    def __init__(self, message: str, status: int | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.status, self.slow = status, slow


class _Retryable(ValueError):
    def __init__(self, reason: str, status: int | None = None, retry_after: str = "", slow: bool = False) -> None:
        super().__init__(" ".join(reason.split())[:EXCERPT])
        self.status, self.pause, self.slow = status, _seconds(retry_after), slow


def _seconds(retry_after: str) -> float:
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0


@dataclass
class Endpoints:
    """Servers that answer the same requests: they share the work, and each replaces the others when they fail.

    ``timeout`` bounds one attempt in seconds, however slowly the answer arrives; ``retries`` counts the attempts at
    each endpoint after the first. After its n-th failure an endpoint rests ``backoff * 2**n`` seconds (with jitter), or
    as long as its ``Retry-After`` demands, in both cases at most ``max_pause``. Answers of more than ``max_bytes`` are
    refused. After a request that no endpoint answered, ``failing`` is true and no endpoint is tried twice until one
    answers.
    """

    urls: Sequence[str]
    headers: Mapping[str, str]
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    max_pause: float = 30.0
    max_bytes: int = 64 << 20
    failing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.urls:
            raise RewardError("no endpoint is named")
        for url in self.urls:
            join_url(url, "")
        self._turns, self._resting = itertools.count(), dict.fromkeys(self.urls, 0.0)

    def request(self, path: str, payload: Any = None, parse: Callable[[Any], Any] = lambda tree: tree) -> Any:
        """The parsed answer of the first endpoint that gives one, to a POST of ``payload`` or else to a GET.

        ``parse`` raises ``ValueError`` for an answer that it cannot use. Endpoints that failed within the last minute
        are tried last.

        Raises :class:`EndpointError`: attempts are exhausted, or a status shows that more of them would not help.
        Raises :class:`RewardError`: a header cannot be sent.
        """
        first, now = next(self._turns) % len(self.urls), time.monotonic()
        urls = sorted([*self.urls[first:], *self.urls[:first]], key=lambda url: self._resting[url] > now)
        attempts = len(urls) * (1 if self.failing else self.retries + 1)
        due = dict.fromkeys(urls, 0.0)
        failures: dict[str, _Retryable] = {}
        for attempt in range(attempts):
            url = urls[attempt % len(urls)]
            time.sleep(max(0.0, due[url] - time.monotonic()))
            try:
                answer = parse(self._attempt(join_url(url, path), payload))
            except (ValueError, RecursionError) as error:
                failure = error if isinstance(error, _Retryable) else _Retryable(one_line(error), 200)
            else:
                self.failing = False
                return answer
            failures[url], now = failure, time.monotonic()
            pause = self.backoff * 2 ** min(attempt // len(urls), 16) * _JITTER.uniform(0.5, 1.0)
            due[url] = now + min(max(pause, failure.pause), self.max_pause)
            self._resting[url] = now + REST_SECONDS
        self.failing = True
        reasons = "; ".join(f"{join_url(url, path)}: {failure}" for url, failure in failures.items())
        statuses = [failure.status for failure in failures.values()]
        message = f"no answer after {attempts} attempt{'s' * (attempts > 1)}: {reasons}"
        slow = any(failure.slow for failure in failures.values())
        raise EndpointError(message, None if None in statuses else statuses[-1], slow)

    def _attempt(self, url: str, payload: Any) -> Any:
        response, body = self._exchange(url, payload)
        text, status = " ".join(body[: 4 * EXCERPT].decode("utf-8", "replace").split()), response.status_code
        for value in self.headers.values():  # a server may repeat the token
            text = text.replace(value.split()[-1], "***")
        if not response.is_success:
            reason = f"HTTP {status}: {text[:EXCERPT]}".removesuffix(": ")
            if status in RETRYABLE:
                raise _Retryable(reason, status, response.headers.get("Retry-After", ""))
            raise EndpointError(f"{url}: {reason}", status)
        if len(body) > self.max_bytes:
            raise EndpointError(f"{url}: its answer is larger than {self.max_bytes} bytes", status)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _Retryable(f"its answer is not JSON: {text}", 200) from error

    def _exchange(self, url: str, payload: Any) -> tuple[httpx.Response, bytearray]:
        """A response and its body, or the beginning of one that is too large, all received within the timeout.

        Redirects are not followed, because they would carry the token elsewhere. Loopback is never reached by a proxy.
        """
        body, method, headers = bytearray(), "GET" if payload is None else "POST", {**PLAIN, **self.headers}
        local = is_loopback(urlsplit(url).hostname or "")

        def fetch() -> httpx.Response:
            with client.stream(method, url, json=payload, headers=headers) as response:
                for block in response.iter_bytes():
                    body.extend(block)
                    if len(body) > (self.max_bytes if response.is_success else 4 * EXCERPT):
                        break
            return response

        with httpx.Client(verify=_tls(), trust_env=not local, timeout=self.timeout) as client:
            try:
                return Background(fetch).result(self.timeout), body  # httpx bounds the wait for each block alone
            except (FutureTimeout, httpx.TimeoutException) as error:
                raise _Retryable(f"no answer within {self.timeout:g} s", slow=True) from error
            except (httpx.LocalProtocolError, httpx.InvalidURL, ValueError):
                raise RewardError(f"{url}: a header or the address holds characters that cannot be sent") from None
            except httpx.HTTPError as error:
                raise _Retryable(one_line(error)) from error


def join_url(url: str, path: str) -> str:
    """``path`` below ``url``.

    Raises :class:`RewardError`: not ``http(s)://host[:port][/prefix]``, or one that carries a password or a query.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        shown = url.split("?")[0].rsplit("@", 1)[-1]
        raise RewardError(f"endpoint {shown!r}: want http(s)://host[:port][/prefix], without password or query")
    return f"{url.rstrip('/')}/{path.lstrip('/')}"


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
