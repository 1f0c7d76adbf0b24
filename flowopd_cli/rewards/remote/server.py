"""The HTTP server of a scoring worker: Starlette run by uvicorn, on loopback unless a token guards it, limits on
everything, a graceful stop.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowopd_cli.errors import FlowOPDError, RewardError, printable, redacted
from flowopd_cli.errors import one_line as error_line
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.batching import Batcher
from flowopd_cli.rewards.remote.protocol import Answer, Refusal, one_line
from flowopd_cli.rewards.remote.settings import Settings, from_flags, parser

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")
GRACE_SECONDS = 30
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class Scorer(Protocol):
    """What a worker serves. ``info`` has ``reward``, and may have ``package``, ``weights``, ``options``, ``low``,
    ``high``, ``exact`` and whatever else clients should know.
    """

    info: Mapping[str, Any]

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """Score RGB pictures against prompts ``{"id", "text", "task", "metadata"}``."""
        ...

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Raise :class:`Refusal` (422) for prompts that could not be scored."""
        ...


class Worker:
    """A reward behind HTTP; ``application`` is the ASGI application."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.info: dict[str, Any] = {}
        self._scorer: Scorer | None = None
        self._batcher: Batcher | None = None
        self._requests = 0
        hosts = [*LOOPBACK_HOSTS, settings.host]
        self.application = Starlette(
            routes=[
                Route(protocol.HEALTH, self._health),
                Route(protocol.INFO, self._info),
                Route(protocol.CHECK, self._check, methods=["POST"]),
                Route(protocol.SCORE, self._score, methods=["POST"]),
            ],
            # A page in a browser may reach this machine under a name of its own, which stands in the Host header.
            middleware=[] if settings.token else [Middleware(TrustedHostMiddleware, hosts, www_redirect=False)],
            exception_handlers={
                Refusal: self._refused,
                HTTPException: self._refused,
                ClientDisconnect: self._refused,
                Exception: self._failed,
            },
        )

    @property
    def ready(self) -> bool:
        """Whether the reward is loaded and its thread alive."""
        return self._batcher is not None and self._batcher.alive

    def start(self, scorer: Scorer) -> None:
        """Answer requests with this scorer."""
        settings, info = self.settings, protocol.to_json(dict(scorer.info))
        digest = protocol.fingerprint(info["reward"], info.get("weights", {}), info.get("options", {}))
        identity = {"protocol": protocol.PROTOCOL, "fingerprint": digest, "limits": settings.limits.published()}
        self.info, self._scorer = {**identity, **info}, scorer
        self._batcher = Batcher(scorer, max_batch=settings.max_batch, linger=settings.linger, limits=settings.limits)

    def close(self) -> None:
        """Accept no more requests."""
        if self._batcher is not None:
            self._batcher.close()

    def log(self, text: str) -> None:
        """One line on stderr, control characters written out."""
        print(f"{time.strftime('%H:%M:%S')} {printable(redacted(text))}", file=sys.stderr, flush=True)

    async def _health(self, request: Request) -> JSONResponse:
        waiting = self._batcher.waiting if self._batcher else 0
        return JSONResponse({"alive": True, "ready": self.ready, "waiting": waiting})

    async def _info(self, request: Request) -> JSONResponse:
        self._admit(request)
        return JSONResponse(self.info)

    async def _check(self, request: Request) -> JSONResponse:
        scorer, _ = self._admit(request)
        async with self._body(request) as body:
            prompts = protocol.read_check_request(body, self.info["reward"])
            try:
                await asyncio.to_thread(scorer.check, prompts)
            except Refusal as refusal:
                return self._answer({"ok": False, "error": str(refusal)})
        return self._answer({"ok": True, "error": None})

    async def _score(self, request: Request) -> JSONResponse:
        _, batcher = self._admit(request)
        async with self._body(request) as body:
            started = time.monotonic()
            pictures, prompts = await asyncio.to_thread(
                protocol.read_score_request, body, self.info["reward"], self.settings.limits
            )
            if not pictures:
                return self._answer(asdict(Answer([])))
            answer = await self._queue(request, batcher, pictures, prompts)
            self.log(f"scored {len(pictures)} pictures in {time.monotonic() - started:.2f} s")
        return self._answer(asdict(answer))

    def _admit(self, request: Request) -> tuple[Scorer, Batcher]:
        """Check the token, and that the reward is loaded."""
        token, header = self.settings.token, request.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
            raise Refusal(401, "a bearer token is needed, and the one given is missing or wrong")
        if self._scorer is None or self._batcher is None:
            raise Refusal(503, "the reward is still being loaded")
        if not self._batcher.alive:
            raise Refusal(503, "this worker is stopping")
        return self._scorer, self._batcher

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, while the request counts as one of those under way."""
        limits, length = self.settings.limits, request.headers.get("Content-Length", "0")
        if request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the body must be application/json")
        if len(length) > len(str(limits.body_bytes)) or int(length) > limits.body_bytes:
            raise Refusal(413, f"a body of {protocol.excerpt(length)} bytes; at most {limits.body_bytes} are accepted")
        if self._requests >= limits.requests:
            raise Refusal(503, f"{self._requests} requests are under way already")
        self._requests += 1
        try:
            yield await asyncio.wait_for(self._read(request, limits.body_bytes), limits.body_seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} s") from error
        finally:
            self._requests -= 1

    async def _read(self, request: Request, limit: int) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Refusal(413, f"a body of more than {limit} bytes")
        return bytes(body)

    async def _queue(
        self, request: Request, batcher: Batcher, pictures: list[Image.Image], prompts: list[dict[str, Any]]
    ) -> Answer:
        """The scores, unless the caller leaves or the queue is too slow before scoring begins."""
        future = batcher.submit(pictures, prompts)
        scores, departure = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(request))
        seconds = self.settings.limits.queue_seconds
        try:
            await asyncio.wait({scores, departure}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not scores.done() and future.cancel():
                if departure.done():
                    raise Refusal(408, "the caller has gone")
                raise Refusal(503, f"waited {seconds:g} s in the queue")
            return await scores
        finally:
            departure.cancel()

    def _answer(self, answer: Mapping[str, Any]) -> JSONResponse:
        return JSONResponse({**{name: self.info[name] for name in ("protocol", "reward", "fingerprint")}, **answer})

    async def _refused(self, request: Request, error: Exception) -> JSONResponse:
        status = 400 if isinstance(error, ClientDisconnect) else getattr(error, "status", None)
        reason = "the body ended early" if isinstance(error, ClientDisconnect) else str(error)
        if isinstance(error, HTTPException):
            status, path = error.status_code, protocol.excerpt(request.url.path)
            reason = f"there is no {path} here" if status == 404 else f"{error.detail} at {path}"
        self.log(f"refused with {status}: {reason}")
        return JSONResponse({"error": reason}, status or 500, HEADERS.get(status or 500))

    async def _failed(self, request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": one_line(error)}, 500)  # uvicorn prints the traceback


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def serve(load: Callable[[], Scorer], settings: Settings) -> None:
    """Listen at once, load, print the URL on stdout, score until SIGTERM or SIGINT, finish what was begun.

    While ``load`` works, ``/health`` says ``ready: false`` and everything else is refused with 503.

    Raises:
        RewardError: the address is not available.
    """
    worker, listener, stop = Worker(settings), _listen(settings), threading.Event()
    server = uvicorn.Server(_config(worker))
    _handle_signals(worker, stop)
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    parent, out = os.getppid(), sys.stdout
    sys.stdout = sys.stderr  # stdout gets the URL alone, whatever a library prints
    try:
        worker.start(load())
        url = _url(listener)
        worker.log(f"{worker.info['reward']} is served at {url}")
        print(url, file=out, flush=True)
        while not stop.wait(0.5):
            if settings.watch_parent and os.getppid() != parent:
                worker.log("the process that started this worker has ended")
                break
    except _Stop:
        pass
    finally:
        sys.stdout = out
        server.should_exit = True
        thread.join(GRACE_SECONDS + 5)
        worker.close()


def _config(worker: Worker) -> uvicorn.Config:
    limits = worker.settings.limits

    class TimedProtocol(H11Protocol):
        """Closes connections whose next request header does not arrive in time; uvicorn alone waits for ever."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_request()

        def _await_request(self) -> None:
            self.loop.call_later(limits.header_seconds, self._close_unless_newer, self.cycle)

        def _close_unless_newer(self, cycle: Any) -> None:
            if self.cycle is cycle:
                self.transport.close()

    return uvicorn.Config(
        worker.application,
        http=TimedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class _Stop(BaseException):
    """A signal that came while the reward was being loaded."""


def _handle_signals(worker: Worker, stop: threading.Event) -> None:
    """The first SIGTERM or SIGINT stops gracefully, the second at once."""

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        if not worker.ready:
            raise _Stop

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=64)
    except (OSError, OverflowError) as error:
        place = f"{settings.host}:{settings.port}"
        raise RewardError(f"cannot listen at {place} ({one_line(error)}); choose another --port") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(load: Callable[[Mapping[str, Any]], Scorer], argv: Sequence[str] | None = None) -> None:
    """The command line of a worker script: serve what ``load(options)`` returns. A user's mistake is one line and exit
    code 2.
    """
    flags = parser().parse_args(argv)
    try:
        options = json.loads(flags.options)
        serve(lambda: load(options), from_flags(vars(flags)))
    except FlowOPDError as error:
        _exit(2, str(error))
    except (ImportError, OSError, TypeError, ValueError, RuntimeError) as error:
        _exit(1, one_line(error))


def _exit(code: int, message: str) -> None:
    print(f"flowopd: error: {error_line(message)}", file=sys.stderr, flush=True)
    sys.exit(code)
