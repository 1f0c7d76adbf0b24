"""JSON over HTTP for rewards that live elsewhere: bounded retries, failover, and errors of one line. Standard library.

Shared by the judge (``vlm``) and by the client of a scoring worker (``remote``).
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from flowopd_cli.errors import RewardError

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
    """No endpoint gave an answer. ``status`` is the last HTTP status, ``None`` where there was no answer at all."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Again(Exception):
    """A failure that another attempt may cure."""

    def __init__(self, reason: str, status: int | None = None, after: float = 0.0) -> None:
        super().__init__(reason)
        self.status, self.after = status, after


def post_json(
    urls: str | Sequence[str],
    path: str,
    payload: Any,
    headers: Mapping[str, str] | None = None,
    patience: Patience = Patience(),
) -> Any:
    """POST to the first of ``urls`` that answers, and its answer parsed; ``payload`` is JSON, or bytes sent as given.

    ``path`` is appended to each URL. Each attempt goes to the next endpoint. Redirects are not followed (they would
    carry the token elsewhere), and a loopback address is never asked through a proxy.

    Raises:
        EndpointError: attempts are exhausted, or a status says that more of them would not help.
        RewardError: a URL cannot be used.
    """
    raw = isinstance(payload, (bytes, bytearray))
    body = bytes(payload) if raw else json.dumps(payload).encode()
    kind = "application/octet-stream" if raw else "application/json"
    return _send(urls, path, body, {"Content-Type": kind, **(headers or {})}, patience)


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
    return _send(urls, path, None, dict(headers or {}), patience)


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


def _send(urls: str | Sequence[str], path: str, body: bytes | None, headers: dict[str, str], patience: Patience) -> Any:
    targets = [join_url(url, path) for url in ([urls] if isinstance(urls, str) else urls)]
    if not targets:
        raise RewardError("no endpoint is named")
    due = dict.fromkeys(targets, 0.0)
    failures: dict[str, _Again] = {}
    attempts = max(patience.retries + 1, len(targets))
    for attempt in range(attempts):
        target = targets[attempt % len(targets)]
        time.sleep(max(0.0, due[target] - time.monotonic()))
        try:
            return _once(target, body, headers, patience)
        except _Again as failure:
            failures[target] = failure
            due[target] = time.monotonic() + _pause(failure, attempt // len(targets), patience)
    reasons = "; ".join(f"{target}: {failure}" for target, failure in failures.items())
    tries = f"{attempts} attempt{'s' * (attempts > 1)}"
    raise EndpointError(f"no answer after {tries}: {reasons}", list(failures.values())[-1].status)


def _once(url: str, body: bytes | None, headers: dict[str, str], patience: Patience) -> Any:
    request = urllib.request.Request(url, data=body, headers=headers, method="GET" if body is None else "POST")
    try:
        with _opener(url).open(request, timeout=patience.timeout) as answer:
            content = _read(answer, patience, url)
    except urllib.error.HTTPError as error:
        raise _refusal(url, error, headers) from error
    except ValueError:
        raise RewardError(f"{url}: a header or the address holds characters that cannot be sent") from None
    except TimeoutError as error:
        raise _Again(f"no answer within {patience.timeout:g} s") from error
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        timed_out = isinstance(cause, TimeoutError)
        raise _Again(f"no answer within {patience.timeout:g} s" if timed_out else _one_line(cause)) from error
    try:
        return json.loads(content)
    except ValueError as error:
        raise _Again(f"its answer is not JSON: {_quote(content, headers)}", 200) from error


def _read(answer: Any, patience: Patience, url: str) -> bytes:
    """The whole body, within the time and size that patience allows; a body cut short raises ``IncompleteRead``."""
    deadline = time.monotonic() + patience.timeout
    blocks: list[bytes] = []
    size = 0
    while block := answer.read1(CHUNK):
        blocks.append(block)
        size += len(block)
        if size > patience.limit:
            raise EndpointError(f"{url}: its answer is larger than {patience.limit} bytes", answer.status)
        if time.monotonic() > deadline:
            raise TimeoutError
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


def _opener(url: str) -> urllib.request.OpenerDirector:
    direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
    return urllib.request.build_opener(_NoRedirect, *direct)
