"""JSON over HTTP with bounded retries and failover, for rewards behind an endpoint (``vlm``, ``remote``)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from flowopd_cli.errors import RewardError
from flowopd_cli.system.threads import Background

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
EXCERPT = 200
_JITTER = random.Random()  # separate, so that the seeded generators of a run stay as they are


@dataclass(frozen=True)
class RetryPolicy:
    """``timeout`` bounds one attempt in seconds, however slowly it drips; ``retries`` counts attempts after the first.

    Every endpoint is tried at least once. Before an endpoint is tried again it rests ``backoff * 2**n`` seconds after
    its n-th failure (with jitter), or as long as its ``Retry-After`` says, in both cases at most ``max_pause``.
    Answers of more than ``max_bytes`` are refused.
    """

    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    max_pause: float = 30.0
    max_bytes: int = 64 << 20


class EndpointError(RewardError):
    """No endpoint gave an answer. ``status`` is the last HTTP status, ``None`` where there was none; ``slow`` says that
    an attempt took all its time.
    """

    def __init__(self, message: str, status: int | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.status, self.slow = status, slow


class InvalidResponse(Exception):
    """Raised by a ``parse`` that cannot use an answer; another attempt or endpoint may give a better one."""


class _Retryable(Exception):
    def __init__(self, reason: object, status: int | None = None, pause: float = 0.0, slow: bool = False) -> None:
        super().__init__(" ".join(str(reason).split())[:EXCERPT] or type(reason).__name__)
        self.status, self.pause, self.slow = status, pause, slow


@dataclass
class _Response:
    """What has arrived so far."""

    status: int | None = None
    retry_after: str | None = None
    body: bytearray = field(default_factory=bytearray)


def request_json(
    urls: str | Sequence[str],
    path: str,
    payload: Any = None,
    headers: Mapping[str, str] | None = None,
    policy: RetryPolicy = RetryPolicy(),
    parse: Callable[[Any], Any] = lambda tree: tree,
) -> Any:
    """The parsed answer of the first of ``urls`` that gives one, to a POST of ``payload`` or else to a GET.

    Each attempt goes to the next endpoint. Redirects are not followed (they would carry the token elsewhere), and a
    loopback address is never reached through a proxy.

    Raises:
        EndpointError: attempts are exhausted, or a status says that more of them would not help.
        RewardError: a URL or a header cannot be used.
    """
    targets = [join_url(url, path) for url in ([urls] if isinstance(urls, str) else urls)]
    if not targets:
        raise RewardError("no endpoint is named")
    content = None if payload is None else json.dumps(payload).encode()
    headers = {
        "Accept-Encoding": "identity",
        **({"Content-Type": "application/json"} if content else {}),
        **(headers or {}),
    }
    due = dict.fromkeys(targets, 0.0)
    failures: dict[str, _Retryable] = {}
    attempts = max(policy.retries + 1, len(targets))
    for attempt in range(attempts):
        target = targets[attempt % len(targets)]
        time.sleep(max(0.0, due[target] - time.monotonic()))
        try:
            return parse(_attempt(target, content, headers, policy))
        except (_Retryable, InvalidResponse, RecursionError) as error:
            failure = failures[target] = error if isinstance(error, _Retryable) else _Retryable(error, 200)
            pause = policy.backoff * 2 ** min(attempt // len(targets), 16) * _JITTER.uniform(0.5, 1.0)
            due[target] = time.monotonic() + min(max(pause, failure.pause), policy.max_pause)
    reasons = "; ".join(f"{target}: {failure}" for target, failure in failures.items())
    slow = any(failure.slow for failure in failures.values())
    tries = f"{attempts} attempt{'s' * (attempts > 1)}"
    raise EndpointError(f"no answer after {tries}: {reasons}", list(failures.values())[-1].status, slow)


def join_url(url: str, path: str) -> str:
    """``path`` below ``url``.

    Raises:
        RewardError: not ``http(s)://host[:port][/prefix]``, or one that carries a password or a query.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        shown = url.split("?")[0].rsplit("@", 1)[-1]
        raise RewardError(f"endpoint {shown!r}: want http(s)://host[:port][/prefix], without password or query")
    return f"{url.rstrip('/')}/{path.lstrip('/')}"


def _attempt(url: str, content: bytes | None, headers: Mapping[str, str], policy: RetryPolicy) -> Any:
    """The JSON of one answer, all of which arrived within the timeout."""
    response = _Response()
    try:  # a thread, because the caller's may run an event loop already, as notebooks do
        Background(lambda: asyncio.run(_fetch(url, content, headers, policy, response))).result()
    except (asyncio.TimeoutError, TimeoutError, httpx.TimeoutException) as error:
        if response.status is None or response.status < 300:  # an error needs no body
            raise _Retryable(f"no answer within {policy.timeout:g} s", slow=True) from error
    except (httpx.LocalProtocolError, httpx.InvalidURL, ValueError):
        raise RewardError(f"{url}: a header or the address holds characters that cannot be sent") from None
    except (httpx.HTTPError, OSError) as error:
        if response.status is None or response.status < 300:
            raise _Retryable(_cause(error)) from error
    if response.status is not None and response.status >= 300:
        text = _excerpt(response.body, headers)
        reason = f"HTTP {response.status}" + (f": {text}" if text else "")
        if response.status in RETRYABLE:
            raise _Retryable(reason, response.status, _retry_after(response.retry_after))
        raise EndpointError(f"{url}: {reason}", response.status)
    if len(response.body) > policy.max_bytes:
        raise EndpointError(f"{url}: its answer is larger than {policy.max_bytes} bytes", response.status)
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError) as error:
        raise _Retryable(f"its answer is not JSON: {_excerpt(response.body, headers)}", 200) from error


async def _fetch(
    url: str, content: bytes | None, headers: Mapping[str, str], policy: RetryPolicy, response: _Response
) -> None:
    async def exchange() -> None:
        proxied = urlsplit(url).hostname not in LOOPBACK
        async with (
            httpx.AsyncClient(verify=_tls(), trust_env=proxied, timeout=policy.timeout) as client,
            client.stream("GET" if content is None else "POST", url, content=content, headers=headers) as answer,
        ):
            response.status, response.retry_after = answer.status_code, answer.headers.get("Retry-After")
            async for chunk in answer.aiter_bytes():
                response.body += chunk
                if len(response.body) > (policy.max_bytes if answer.is_success else 4 * EXCERPT):
                    return

    await asyncio.wait_for(exchange(), policy.timeout)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _cause(error: BaseException) -> str:
    """The system's own words where it refused (httpx says only that connecting failed), else the error's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        if value.strip().isdigit():
            return float(value)
        date = parsedate_to_datetime(value)
        zoned = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
        return max(0.0, (zoned - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _excerpt(body: bytes | bytearray, headers: Mapping[str, str]) -> str:
    """The first 200 characters on one line, without the token in case it is echoed."""
    text = bytes(body[: 4 * EXCERPT]).decode("utf-8", "replace")
    for name, value in headers.items():
        if name.lower() in SECRET_HEADERS and value.split():
            text = text.replace(value.split()[-1], "***")
    return " ".join(text.split())[:EXCERPT]
