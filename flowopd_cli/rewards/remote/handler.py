"""What a worker answers on one connection: who may ask, how much, and within which time."""

from __future__ import annotations

import hmac
import socket
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.hosts import names_loopback
from flowopd_cli.rewards.remote.protocol import Refusal
from flowopd_cli.rewards.remote.service import Service

IDLE_SECONDS = 30.0
DRAIN_SECONDS = 5.0
BLOCK = 1 << 16
LONGEST = 15


class Host(Protocol):
    """What a connection needs of the server that it came to."""

    service: Service

    def header_came(self, request: socket.socket) -> bool:
        """Note that a connection's header has been read; whether that was in time."""
        ...


class Handler(BaseHTTPRequestHandler):
    """Every answer, refusals of the standard library's included, is JSON and closes the connection."""

    server: Host  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version = "flowopd"
    sys_version = ""
    timeout = IDLE_SECONDS
    unread = 0
    entered = False

    def parse_request(self) -> bool:
        """Read the header, which has to come in time as a whole."""
        sound = super().parse_request()
        if sound and self.request_version == "HTTP/0.9":  # whose answers have no status
            self.send_error(505, "the request names no version of HTTP")
            return False
        if self.server.header_came(self.connection):
            return sound
        if sound:
            self.send_error(408, "the header did not arrive in time")
        return False

    def do_GET(self) -> None:
        """``/health`` and ``/info``."""
        self._reply(self._get)

    def do_POST(self) -> None:
        """``/score`` and ``/check``."""
        try:
            self._reply(self._post)
        finally:
            if self.entered:
                self.server.service.leave()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses (method, version, size of the header), in our own form."""
        reason = " ".join((message or "the request cannot be understood").split())[:300]
        self.server.service.log(f"refused with {int(code)}: {reason}")
        self.request_version = self.protocol_version
        try:
            self.unread = self._length()
        except (Refusal, AttributeError):
            self.unread = 0
        self._answer(int(code), wire.to_bytes({"error": reason}))

    def log_message(self, format: str, *args: Any) -> None:
        """Every answer is logged by the service, if at all."""

    def _get(self) -> dict[str, Any]:
        if self.path == wire.HEALTH:
            return self.server.service.health()
        self._authorize()
        if self.path == wire.INFO:
            return self.server.service.describe()
        raise Refusal(404, f"there is no {wire.shown(self.path)} here")

    def _post(self) -> dict[str, Any]:
        service = self.server.service
        self.unread = self._length()
        self._authorize()
        if self.path not in (wire.SCORE, wire.CHECK):
            raise Refusal(404, f"there is no {wire.shown(self.path)} here")
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
        host = self.headers.get("Host", "localhost")
        if token is None and not names_loopback(host):
            raise Refusal(421, f"without a token this worker is known as localhost alone, not as {wire.shown(host)}")
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refusal(401, "a bearer token is needed, and this is not the one")

    def _length(self) -> int:
        text = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not text.isdecimal():
            raise Refusal(411, "the body's length is not given")
        if len(text) > LONGEST:
            raise Refusal(413, f"a body whose length has {len(text)} digits")
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
        self._answer(status, body)

    def _answer(self, status: int, body: bytes) -> None:
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
        if self.command != "HEAD":
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
