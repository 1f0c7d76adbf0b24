"""The page that asks for votes, served on loopback."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowopd_cli.errors import FlowOPDError, RecipeError
from flowopd_cli.reports.votes import Files, Pair, Vote, begin, read_votes, record
from flowopd_cli.runs.manifest import now

LARGEST = 1000  # bytes of an answer
POLICY = "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{0}'; script-src 'nonce-{0}'"


class Session:
    """The pairs that a voter has not judged yet, in their order."""

    def __init__(self, pairs: Mapping[Pair, Files], file: Path, voter: str) -> None:
        begin(file)
        voted_keys = {vote.key for vote in read_votes(file) if vote.voter == voter}
        self.pairs = list(pairs.items())
        self._file, self._voter, self._lock = file, voter, threading.Lock()
        self._open = deque(number for number, (pair, _) in enumerate(self.pairs) if pair.key not in voted_keys)
        self._past: list[int] = []  # of this session, for undo

    @property
    def vote_count(self) -> int:
        """The number of pairs with a vote."""
        return len(self.pairs) - len(self._open)

    @property
    def progress(self) -> str:
        """The same in words."""
        return f"{self.vote_count:,} of {len(self.pairs):,} pairs have a vote"

    def state(self) -> dict[str, Any]:
        """The number and the prompt of the pair to show, ``None`` after the last one; nothing about its models."""
        number = self._open[0] if self._open else None
        text = "" if number is None else self.pairs[number][0].text
        return {"number": number, "text": text, "note": self.progress, "undo": bool(self._past)}

    def answer(self, number: int | None, choice: str) -> None:
        """Take ``left``, ``right``, ``tie``, ``undo``, or ``skip``, which puts the pair behind all others. An answer to
        a pair that is not shown, as of a second press of a key, has no effect.

        Raises :class:`StorageError`: the vote cannot be written; its pair stays open.
        """
        with self._lock:
            if number != self.state()["number"]:
                return
            if choice == "undo" and self._past:
                self._record(self._past[-1], None)
                self._open.appendleft(self._past.pop())
            elif choice == "skip":
                self._open.rotate(-1)
            elif number is not None and choice != "undo":
                self._record(number, choice)
                self._past.append(self._open.popleft())

    def _record(self, number: int, choice: str | None) -> None:
        facts = {**dict(self.pairs[number][0]), "choice": choice, "time": now(), "voter": self._voter}
        record(self._file, Vote.read(facts, "the page's answer"))


class Server(ThreadingHTTPServer):
    """Serves a session at an address with a secret, so that no other user of this machine and no other site's page
    reaches it. Raises :class:`RecipeError`: the port is taken.
    """

    def __init__(self, session: Session, port: int) -> None:
        self.session, self.secret = session, secrets.token_hex(16)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise RecipeError(f"--port {port}: {error.strerror}; choose another") from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/{self.secret}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 60  # seconds to send a request

    def do_GET(self) -> None:
        match self._parts():
            case [""]:
                page = (files("flowopd_cli.reports") / "vote.html").read_text(encoding="utf-8")
                self._send("text/html", page.replace("NONCE", self.server.secret).encode())
            case ["picture", number, side]:
                self._send_picture(number, side)
            case _:
                self._send("text/plain", b"no such page", 404)

    def _send_picture(self, number: str, side: str) -> None:
        try:
            left, right = self.server.session.pairs[int(number)][1]
            picture = {"left": left, "right": right}[side].read_bytes()
        except (OSError, LookupError, ValueError):
            self._send("text/plain", b"no such picture", 404)
        else:
            self._send("image/png", picture)

    def do_POST(self) -> None:
        if self._parts() != ["answer"]:
            return self._send("text/plain", b"no such page", 404)
        session = self.server.session
        try:
            length = int(self.headers["Content-Length"] or 0)
            answer = json.loads(self.rfile.read(min(max(length, 0), LARGEST)))
            choice, number = answer["choice"], answer["number"]
        except (KeyError, TypeError, ValueError):
            return self._send("text/plain", b"not an answer", 400)
        try:
            if choice != "end":
                session.answer(number, choice)
        except FlowOPDError as error:
            return self._send("text/plain", f"{error}.".encode(), 500)
        self._send("application/json", json.dumps(session.state()).encode())
        return self.server.shutdown() if choice == "end" else None

    def _parts(self) -> list[str]:
        """The address below the secret, in parts; none without the secret."""
        _, secret, *parts = f"{self.path}/".split("/")
        return parts[:-1] if secrets.compare_digest(secret.encode(), self.server.secret.encode()) else []

    def _send(self, kind: str, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY.format(self.server.secret))
        self.send_header("Cache-Control", "no-store")
        with suppress(ConnectionError):  # the page was closed
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
