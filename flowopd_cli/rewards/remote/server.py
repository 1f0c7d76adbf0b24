"""The HTTP server of a scoring worker: loopback unless a token guards it, limits on everything, a graceful stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.handler import Handler
from flowopd_cli.rewards.remote.hosts import is_loopback
from flowopd_cli.rewards.remote.service import Scorer, Service, Settings

TOKEN_ENV = "FLOWOPD_REWARD_TOKEN"
TOO_MANY = wire.to_bytes({"error": "too many connections"})
CROWDED = b"\r\n".join(
    (
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(TOO_MANY),
        b"Retry-After: 1",
        b"Connection: close",
        b"",
        TOO_MANY,
    )
)


def serve(load: Callable[[], Scorer], settings: Settings) -> None:
    """Listen at once, load, print the URL on stdout, score until SIGTERM or SIGINT, finish what was begun.

    While ``load`` works, ``/health`` says ``ready: false`` and everything else is refused with 503.

    Raises:
        RewardError: the address cannot be had, or an open one without a token.
    """
    check_open(settings.host, settings.token)
    service = Service(settings)
    server = _listen(service)
    stop = threading.Event()
    _on_signals(service, stop)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True).start()
    parent, out = os.getppid(), sys.stdout
    sys.stdout = sys.stderr  # the URL is all that stdout gets, whatever a library prints
    try:
        service.start(load())
        service.log(f"{service.info['reward']} is served at {server.url}")
        print(server.url, file=out, flush=True)
        while not stop.wait(0.5):
            if settings.watch_parent and os.getppid() != parent:
                service.log("the process that started this worker is gone")
                break
    except _Stop:
        pass
    finally:
        sys.stdout = out
        server.shutdown()
        service.finish()
        server.server_close()


def read_token(env: str = TOKEN_ENV, file: str | Path | None = None) -> str | None:
    """The token that a file holds, or else an environment variable; ``None`` where there is none.

    Raises:
        RewardError: the file cannot be read, or the token is empty or of more than visible ASCII letters.
    """
    try:
        token = Path(file).read_text(encoding="ascii").strip() if file is not None else os.environ.get(env)
    except (OSError, ValueError) as error:
        raise RewardError(f"token file {file}: cannot be read ({wire.one_line(error)})") from error
    if token is not None and (not token or not all(33 <= ord(letter) < 127 for letter in token)):
        source = f"file {file}" if file is not None else f"variable {env}"
        raise RewardError(f"the token in the {source} must be visible ASCII letters, at least one")
    return token


def check_open(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        RewardError: no token, and not a loopback address.
    """
    if token is None and not is_loopback(host):
        raise RewardError(
            f"--host {host}: other machines could reach it, so it needs a token: "
            f"set {TOKEN_ENV} (or name --token-env or --token-file), or leave out --host"
        )


class _Stop(BaseException):
    """A signal that came while the reward was being loaded."""


def _on_signals(service: Service, stop: threading.Event) -> None:
    """The first SIGTERM or SIGINT stops gracefully, the second at once."""

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        if not service.ready:
            raise _Stop

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)


def _listen(service: Service) -> _Server:
    host, port = service.settings.host, service.settings.port
    try:
        return _Server((host, port), service)
    except (OSError, OverflowError) as error:
        raise RewardError(f"cannot listen at {host}:{port} ({wire.one_line(error)}); choose another --port") from error


class _Server(ThreadingHTTPServer):
    """A thread for each connection, so many and no more; one whose header does not come is cut off."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.service = service
        self._places = threading.BoundedSemaphore(service.settings.limits.connections)
        self._headers_due: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def server_bind(self) -> None:
        """Bind without looking up our own name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own, or refuse it when there are too many."""
        if not self._places.acquire(blocking=False):
            with suppress(OSError):  # who is refused may be gone already
                request.settimeout(0)
                request.send(CROWDED)
            self.shutdown_request(request)
            return
        with self._lock:
            self._headers_due[request] = time.monotonic() + self.service.settings.limits.header_seconds
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._gone(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle it, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._gone(request)

    def service_actions(self) -> None:
        """Now and then: let nobody read on whose header is overdue. An answer can still be written."""
        with self._lock:
            late = [request for request, due in self._headers_due.items() if due < time.monotonic()]
            for request in late:
                del self._headers_due[request]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RD)
            except OSError:
                continue

    def header_came(self, request: socket.socket) -> bool:
        """Note that a connection's header has been read; whether that was in time."""
        with self._lock:
            return self._headers_due.pop(request, None) is not None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that its client broke is one line."""
        self.service.log(f"a connection ended early ({wire.one_line(sys.exc_info()[1] or OSError())})")

    def _gone(self, request: socket.socket) -> None:
        with self._lock:
            self._headers_due.pop(request, None)
        self._places.release()
