"""The HTTP server of a scoring worker: loopback unless a token guards it, limits on everything, a graceful stop."""

from __future__ import annotations

import hmac
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.serving import wire
from flowopd_cli.rewards.serving.service import Scorer, Service, Settings
from flowopd_cli.rewards.serving.wire import Refusal

TOKEN_ENV = "FLOWOPD_REWARD_TOKEN"
IDLE_SECONDS = 30.0
DRAIN_SECONDS = 5.0
BLOCK = 1 << 16


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


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.service = service
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def server_bind(self) -> None:
        """Bind without looking up our own name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that its client broke is one line."""
        self.service.log(f"a connection ended early ({wire.one_line(sys.exc_info()[1] or OSError())})")


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version = "flowopd"
    sys_version = ""
    timeout = IDLE_SECONDS
    unread = 0
    entered = False

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        try:
            self._reply(self._post)
        finally:
            if self.entered:
                self.server.service.leave()

    def log_message(self, format: str, *args: Any) -> None:
        """Every answer is logged by the service, if at all."""

    def _get(self) -> dict[str, Any]:
        if self.path == wire.HEALTH:
            return self.server.service.health()
        self._authorize()
        if self.path == wire.INFO:
            return self.server.service.describe()
        raise Refusal(404, f"there is no {self.path[:100]} here")

    def _post(self) -> dict[str, Any]:
        service = self.server.service
        self.unread = self._length()
        self._authorize()
        if self.path not in (wire.SCORE, wire.CHECK):
            raise Refusal(404, f"there is no {self.path[:100]} here")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "the body must be application/json")
        if self.unread > service.settings.limits.body_bytes:
            raise Refusal(413, f"a body of {self.unread} bytes; at most {service.settings.limits.body_bytes} are taken")
        service.describe()
        service.enter()
        self.entered = True
        return service.post(self.path, self._body(service.settings.limits.body_seconds), self._is_waited_for)

    def _authorize(self) -> None:
        token = self.server.service.settings.token
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refusal(401, "a bearer token is needed, and this is not the one")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not text.isdecimal():
            raise Refusal(411, "the body's length is not given")
        return int(text)

    def _body(self, seconds: float) -> bytes:
        """The whole body within ``seconds``."""
        deadline = time.monotonic() + seconds
        blocks: list[bytes] = []
        while self.unread:
            left = deadline - time.monotonic()
            try:
                self.connection.settimeout(max(0.001, left))
                block = self.rfile.read1(min(BLOCK, self.unread))
            except TimeoutError as error:
                raise Refusal(408, f"the body did not arrive within {seconds:g} s") from error
            if not block:
                raise Refusal(400, f"the body ended {self.unread} bytes early")
            blocks.append(block)
            self.unread -= len(block)
        return b"".join(blocks)

    def _is_waited_for(self) -> bool:
        """Whether the client has not hung up; one that gave up and asks again would be scored twice."""
        try:
            self.connection.settimeout(0)
            return self.connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _reply(self, act: Callable[[], dict[str, Any]]) -> None:
        try:
            status, body = 200, wire.to_bytes(act())
        except Refusal as refusal:
            status, body = refusal.status, wire.to_bytes({"error": str(refusal)})
            self.server.service.log(f"refused with {status}: {refusal}")
        except Exception as error:
            traceback.print_exc()
            status, body = 500, wire.to_bytes({"error": wire.one_line(error)})
        self.connection.settimeout(IDLE_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)
        self._drain()

    def _drain(self) -> None:
        """Take what the client still sends, for a while: closed on unread bytes, it would not see the answer."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.unread > 0 and (left := deadline - time.monotonic()) > 0:
            try:
                self.connection.settimeout(left)
                block = self.rfile.read1(min(BLOCK, self.unread))
            except OSError:
                return
            self.unread = self.unread - len(block) if block else 0
