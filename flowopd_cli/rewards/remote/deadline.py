"""A time limit for one HTTP exchange as a whole. Standard library.

A socket's timeout starts anew with every byte, so that a server which drips its header, its chunks or its error page
would hold a caller for ever. Here a timer shuts the connection.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any


class Deadline:
    """Shuts every socket that it watches once its seconds are over, while its ``with`` block lasts.

    ``passed`` says whether it had to: what was read until then is not the whole.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        """Start the clock."""
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it, and let go of the sockets."""
        self._timer.cancel()
        with self._lock:
            while self._watched:
                self._watched.pop().close()

    def watch(self, connection: socket.socket) -> None:
        """Shut this one too; a duplicate is kept, for TLS takes the socket itself over."""
        with self._lock:
            self._watched.append(connection.dup())
        if self.passed:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._watched:
                _shut(connection)


def handlers(deadline: Deadline) -> list[urllib.request.BaseHandler]:
    """What makes an opener's connections, over HTTP and HTTPS, keep to the deadline."""
    return [_Handler(deadline), _TLSHandler(deadline)]


class _Watched(HTTPConnection):
    deadline: Deadline

    def connect(self) -> None:
        """Connect, and be watched from then on."""
        super().connect()
        self.deadline.watch(self.sock)


class _WatchedTLS(HTTPSConnection, _Watched):
    """Its ``connect`` comes to that of ``_Watched`` before the handshake, which is watched therefore."""


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open over a watched connection."""
        return self.do_open(_maker(_Watched, self._deadline), req)


class _TLSHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Open over a watched connection."""
        return self.do_open(_maker(_WatchedTLS, self._deadline), req)


def _maker(kind: type[_Watched], deadline: Deadline) -> Any:
    def make(host: str, timeout: float) -> _Watched:
        connection = kind(host, timeout=timeout)
        connection.deadline = deadline
        return connection

    return make


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
