"""JSON over HTTP for rewards that live elsewhere: bounded retries, failover, and errors of one line. Standard library.

Shared by the judge (``vlm``) and by the client of a scoring worker (``remote``).
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.deadline import Deadline, handlers

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SECRET = frozenset({"authorization", "api-key", "x-api-key"})
QUOTED = 200
CHUNK = 1 << 16
_JITTER = random.Random()  # of its own: the seeded generators of a run are left alone


@dataclass(frozen=True)
class Patience:
    """How long to try. ``timeout`` bounds one attempt in seconds, ``retries`` counts the attempts after the first.

    Every endpoint is tried once at least. Before an endpoint is asked again it gets ``backoff * 2**n`` seconds after
    its n-th failure (with jitter, ``longest`` at most), or what its ``Retry-After`` asks, bounded likewise. Answers of
    more than ``limit`` bytes are refused.
    """

    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    longest: float = 30.0
    limit: int = 64 << 20


class EndpointError(RewardError):
    """No endpoint gave an answer. ``status`` is the last HTTP status, ``None`` where there was no answer at all;
    ``slow`` says that some attempt took all its time.
    """

    def __init__(self, message: str, status: int | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.status, self.slow = status, slow


class Unusable(Exception):
    """What a ``parse`` raises for an answer that is none; another attempt, or another endpoint, may give one."""


class _Again(Exception):
    """A failure that another attempt may cure."""

    def __init__(self, reason: str, status: int | None = None, after: float = 0.0, slow: bool = False) -> None:
        super().__init__(reason)
        self.status, self.after, self.slow = status, after, slow


def post_json(
    urls: str | Sequence[str],
    path: str,
    payload: Any,
    headers: Mapping[str, str] | None = None,
    patience: Patience = Patience(),
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """POST to the first of ``urls`` that answers, and its answer parsed; ``payload`` is JSON, or bytes sent as given.

    ``path`` is appended to each URL. Each attempt goes to the next endpoint. Redirects are not followed (they would
    carry the token elsewhere), and a loopback address is never asked through a proxy. ``parse`` makes something of the
    JSON; where it raises :class:`Unusable` the attempt has failed.

    Raises:
        EndpointError: attempts are exhausted, or a status says that more of them would not help.
        RewardError: a URL cannot be used.
    """
    raw = isinstance(payload, (bytes, bytearray))
    body = bytes(payload) if raw else json.dumps(payload).encode()
    kind = "application/octet-stream" if raw else "application/json"
    request = _Request(path, body, {"Content-Type": kind, **(headers or {})}, parse or (lambda tree: tree))
    return _send(urls, request, patience)


def get_json(
    urls: str | Sequence[str],
    path: str,
    headers: Mapping[str, str] | None = None,
    patience: Patience = Patience(),
) -> Any:
    """GET likewise.

    Raises:
        EndpointError: attempts are exhausted, or a status says that more of them would not help.
        RewardError: a URL cannot be used.
    """
    return _send(urls, _Request(path, None, dict(headers or {}), lambda tree: tree), patience)


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


@dataclass(frozen=True)
class _Request:
    """What every endpoint is asked, and what is made of the answer."""

    path: str
    body: bytes | None
    headers: Mapping[str, str]
    parse: Callable[[Any], Any]


def _send(urls: str | Sequence[str], request: _Request, patience: Patience) -> Any:
    targets = [join_url(url, request.path) for url in ([urls] if isinstance(urls, str) else urls)]
    if not targets:
        raise RewardError("no endpoint is named")
    due = dict.fromkeys(targets, 0.0)
    failures: dict[str, _Again] = {}
    attempts = max(patience.retries + 1, len(targets))
    for attempt in range(attempts):
        target = targets[attempt % len(targets)]
        time.sleep(max(0.0, due[target] - time.monotonic()))
        try:
            return _once(target, request, patience)
        except _Again as failure:
            failures[target] = failure
            due[target] = time.monotonic() + _pause(failure, attempt // len(targets), patience)
    reasons = "; ".join(f"{target}: {failure}" for target, failure in failures.items())
    tries = f"{attempts} attempt{'s' * (attempts > 1)}"
    slow = any(failure.slow for failure in failures.values())
    raise EndpointError(f"no answer after {tries}: {reasons}", list(failures.values())[-1].status, slow)


def _once(url: str, request: _Request, patience: Patience) -> Any:
    content = _fetched(url, request, patience)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Again(f"its answer is not JSON: {_quote(content, request.headers)}", 200) from error
    try:
        return request.parse(tree)
    except (Unusable, RecursionError) as error:
        raise _Again(_one_line(error), 200) from error


def _fetched(url: str, request: _Request, patience: Patience) -> bytes:
    """The body of one answer; all of it has come within the timeout, however slowly its parts drip."""
    asked = urllib.request.Request(
        url, data=request.body, headers=dict(request.headers), method="GET" if request.body is None else "POST"
    )
    late = _Again(f"no answer within {patience.timeout:g} s", slow=True)
    with Deadline(patience.timeout) as deadline:
        try:
            with _opener(url, deadline).open(asked, timeout=patience.timeout) as answer:
                content = _read(answer, patience, url)
        except urllib.error.HTTPError as error:
            raise _refusal(url, error, request.headers) from error
        except ValueError:
            raise RewardError(f"{url}: a header or the address holds characters that cannot be sent") from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise (late if deadline.passed or isinstance(cause, TimeoutError) else _Again(_one_line(cause))) from error
        if deadline.passed:
            raise late
    return content


def _read(answer: Any, patience: Patience, url: str) -> bytes:
    """The whole body, within the size that patience allows; a body cut short raises ``IncompleteRead``."""
    blocks: list[bytes] = []
    size = 0
    while block := answer.read1(CHUNK):
        blocks.append(block)
        size += len(block)
        if size > patience.limit:
            raise EndpointError(f"{url}: its answer is larger than {patience.limit} bytes", answer.status)
    if answer.length:
        raise HTTPException(f"connection broken, {answer.length} bytes are missing")
    return b"".join(blocks)


def _refusal(url: str, error: urllib.error.HTTPError, headers: Mapping[str, str]) -> Exception:
    """What a status other than 200 means: worth another attempt, or not."""
    try:
        with error:
            said = _quote(error.read(4 * QUOTED), headers)
    except (OSError, HTTPException):
        said = ""
    reason = f"HTTP {error.code}" + (f": {said}" if said else "")
    if error.code in RETRYABLE:
        return _Again(reason, error.code, _retry_after(error.headers.get("Retry-After")))
    return EndpointError(f"{url}: {reason}", error.code)


def _retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, given as seconds or as a date; 0 when it says nothing."""
    if not value:
        return 0.0
    try:
        if value.strip().isdigit():
            return float(value)
        when = parsedate_to_datetime(value)
        zoned = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        return max(0.0, (zoned - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _pause(failure: _Again, failed_before: int, patience: Patience) -> float:
    wait = patience.backoff * 2 ** min(failed_before, 16) * _JITTER.uniform(0.5, 1.0)
    return min(max(wait, failure.after), patience.longest)


def _quote(body: bytes, headers: Mapping[str, str]) -> str:
    """The first 200 characters on one line, what authenticates us blotted out in case it is echoed."""
    text = body[: 4 * QUOTED].decode("utf-8", "replace")
    for name, value in headers.items():
        if name.lower() in SECRET and value.split():
            text = text.replace(value.split()[-1], "***")
    return " ".join(text.split())[:QUOTED]


def _one_line(cause: object) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text[:QUOTED]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener(url: str, deadline: Deadline) -> urllib.request.OpenerDirector:
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    return urllib.request.build_opener(_NoRedirect, *handlers(deadline), *direct)
