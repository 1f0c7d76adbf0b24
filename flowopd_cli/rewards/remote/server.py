"""The HTTP server of a scoring worker: Starlette run by uvicorn, with limits on every size and waiting time."""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from types import FrameType
from typing import Any, Protocol, TypeVar

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowopd_cli.errors import FlowOPDError, RewardError
from flowopd_cli.errors import one_line as printable
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.batching import Batcher
from flowopd_cli.rewards.remote.protocol import Answer, CheckRequest, Refusal, ScoreRequest, WorkerInfo, one_line
from flowopd_cli.rewards.remote.settings import Settings, from_flags
from flowopd_cli.system import streams

R = TypeVar("R", bound=protocol.Request)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")
GRACE_SECONDS = 30
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class Scorer(Protocol):
    """The scoring part of a worker. ``info`` has ``reward`` and may have other fields of :class:`WorkerInfo`."""

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
        self._served: tuple[Scorer, Batcher] | None = None
        # A page in a browser may reach this machine by a host name of its own, which it sends in the Host header.
        hosts = ["*"] if settings.token else [*LOOPBACK_HOSTS, settings.host]
        self.application = Starlette(
            routes=[
                Route(protocol.HEALTH, self._health),
                Route(protocol.INFO, self._info),
                Route(protocol.CHECK, self._check, methods=["POST"]),
                Route(protocol.SCORE, self._score, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, hosts, www_redirect=False)],
            exception_handlers=dict.fromkeys((Refusal, HTTPException, ClientDisconnect, Exception), self._refuse),
        )

    def start(self, scorer: Scorer) -> None:
        """Answer requests with this scorer."""
        settings, info = self.settings, protocol.to_json(scorer.info)
        digest = protocol.fingerprint(info["reward"], info.get("weights", {}), info.get("options", {}))
        description = WorkerInfo(protocol=1, fingerprint=digest, limits=settings.limits, **info)
        self.info = description.model_dump()
        batcher = Batcher(scorer, max_batch=settings.max_batch, linger=settings.linger, limits=settings.limits)
        self._served = scorer, batcher

    def log(self, text: str) -> None:
        """Print one line to stderr."""
        print(time.strftime("%H:%M:%S"), printable(text), file=sys.stderr, flush=True)

    async def _health(self, request: Request) -> Response:
        waiting = self._served[1].waiting if self._served else 0
        return JSONResponse({"alive": True, "ready": self._served is not None, "waiting": waiting})

    async def _info(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse(self.info)

    async def _check(self, request: Request) -> Response:
        scorer, _ = self._admit(request)
        check = await self._read(request, CheckRequest)
        try:
            await asyncio.to_thread(scorer.check, [prompt.model_dump() for prompt in check.prompts])
        except Refusal as refusal:
            return self._answer({"ok": False, "error": str(refusal)})
        return self._answer({"ok": True, "error": None})

    async def _score(self, request: Request) -> Response:
        _, batcher = self._admit(request)
        items, started = (await self._read(request, ScoreRequest)).items, time.monotonic()
        if not items:
            return self._answer(asdict(Answer([])))
        future = batcher.submit([item.png for item in items], [item.prompt.model_dump() for item in items])
        scores, departure = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(request))
        seconds = self.settings.limits.queue_seconds
        try:
            await asyncio.wait({scores, departure}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not scores.done() and future.cancel():  # a batch that has begun is not cancelled
                raise Refusal(503, "the caller has gone" if departure.done() else f"waited {seconds:g} s in the queue")
            answer = await scores
        finally:
            departure.cancel()
        self.log(f"scored {len(items)} pictures in {time.monotonic() - started:.2f} s")
        return self._answer(asdict(answer))

    def _admit(self, request: Request) -> tuple[Scorer, Batcher]:
        """Check the token, and that the reward is loaded."""
        token, header = self.settings.token, request.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
            raise Refusal(401, "a bearer token is needed, and the one given is missing or wrong")
        if self._served is None:
            raise Refusal(503, "the reward is still being loaded")
        return self._served

    async def _read(self, request: Request, model: type[R]) -> R:
        """The body, received and validated."""
        limits, body = self.settings.limits, bytearray()
        if request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "the body must be application/json")
        too_large = Refusal(413, f"a body of more than {limits.body_bytes} bytes")
        if int(request.headers.get("Content-Length", 0)) > limits.body_bytes:
            raise too_large

        async def receive() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                if len(body) > limits.body_bytes:
                    raise too_large

        try:
            await asyncio.wait_for(receive(), limits.body_seconds)
        except asyncio.TimeoutError as error:
            raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} s") from error
        return await asyncio.to_thread(protocol.read_request, model, bytes(body), self.info["reward"], limits)

    def _answer(self, answer: Mapping[str, Any]) -> Response:
        return JSONResponse({**{name: self.info[name] for name in ("protocol", "reward", "fingerprint")}, **answer})

    async def _refuse(self, request: Request, error: Exception) -> Response:
        status, reason = 500, one_line(error)  # uvicorn prints the traceback
        if isinstance(error, Refusal):
            status, reason = error.status, str(error)
        elif isinstance(error, HTTPException):
            status, reason = error.status_code, f"{error.detail}: {protocol.excerpt(request.url.path)}"
        elif isinstance(error, ClientDisconnect):
            status, reason = 400, "the body ended early"
        self.log(f"refused with {status}: {reason}")
        return JSONResponse({"error": reason}, status, HEADERS.get(status))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def serve(load: Callable[[], Scorer], settings: Settings) -> None:
    """Listen at once, load, print the URL on stdout, score until SIGTERM or SIGINT, then finish pending requests.

    During ``load``, ``/health`` answers ``ready: false`` and all other requests get 503.
    """
    worker, failures, out, parent = Worker(settings), [], sys.stdout, os.getppid()
    config = uvicorn.Config(
        worker.application,
        http=_TimedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=settings.limits.header_seconds,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)

    def start() -> None:
        try:
            worker.start(load())
            server.loading, (host, port, *_) = False, listener.getsockname()
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            worker.log(f"{worker.info['reward']} is served at {url}")
            print(url, file=out, flush=True)
            while os.getppid() == parent or not settings.watch_parent:
                time.sleep(0.5)
            worker.log("the process that started this worker has ended")
        except BaseException as error:
            failures.append(error)
        server.should_exit = True

    with _listen(settings) as listener, redirect_stdout(sys.stderr):  # stdout gets the URL alone
        threading.Thread(target=start, daemon=True).start()
        server.run([listener])
    gc.freeze()  # the last collection would walk through every object of torch, which takes seconds on a busy machine
    if failures:
        raise failures[0]


class _TimedProtocol(H11Protocol):
    """Closes a connection whose next request header does not arrive in time; uvicorn alone waits forever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self._close_after, None)

    def on_response_complete(self) -> None:
        cycle = self.cycle
        super().on_response_complete()  # which may begin the next request
        self.loop.call_later(self.timeout_keep_alive, self._close_after, cycle)

    def _close_after(self, cycle: Any) -> None:
        if self.cycle is cycle:
            self.transport.close()


class _Server(uvicorn.Server):
    """Stops gracefully at the first SIGTERM or SIGINT, at once at the second or while the reward is being loaded."""

    loading = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn's own raises the signal again and so ends with an error
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        if self.loading:
            os._exit(0)
        self.should_exit = True


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=64)
    except (OSError, OverflowError) as error:
        place = f"{settings.host}:{settings.port}"
        raise RewardError(f"cannot listen at {place} ({one_line(error)}); choose another --port") from error


def run(load: Callable[[Mapping[str, Any]], Scorer]) -> None:
    """The main function of a worker script: serve ``load(options)`` with the flags of ``flowopd rewards serve``."""
    streams.secure()
    try:
        flags = json.loads(sys.argv[1]) if sys.argv[1:] else {}
        serve(lambda: load(flags.get("options", {})), from_flags(flags))
    except (FlowOPDError, ImportError, OSError, TypeError, ValueError, RuntimeError) as error:
        known = isinstance(error, FlowOPDError)
        print(f"flowopd: error: {printable(error if known else one_line(error))}", file=sys.stderr, flush=True)
        sys.exit(2 if known else 1)
