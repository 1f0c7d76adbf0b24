"""The standard streams of a command: messages never stop it, and a result that cannot be written ends it."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from flowopd_cli.errors import StorageError

CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit code of a Unix command whose reader has gone
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # by descriptor: 0, 1, 2


def secure() -> None:
    """Turn stdout into :class:`Output` and stderr into :class:`Messages`; a closed stream becomes an empty one."""
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:  # the next file to be opened would take its descriptor
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may have characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    for name, kind in (("stdout", Output), ("stderr", Messages)):
        if not isinstance(getattr(sys, name), kind):
            setattr(sys, name, kind(getattr(sys, name)))


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def write(self, text: str) -> int:
        raise NotImplementedError


class Messages(_Stream):
    """A stream that drops what cannot be written: a full disk, a reader or terminal that has gone."""

    def write(self, text: str) -> int:
        """Write as far as possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as far as possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is an open terminal."""
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False


class Output(_Stream):
    """A stream whose first failure ends the command; later writes are ignored.

    Without a reader the exit is quiet, as that of other Unix commands; any other failure is a :class:`StorageError`.
    """

    _failed = False

    def write(self, text: str) -> int:
        """Write and flush text, so that nothing is left to fail later."""
        self._attempt(self._stream.write, text)
        self.flush()
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any, *arguments: str) -> None:
        if self._failed:
            return
        try:
            action(*arguments)
        except BrokenPipeError as error:
            self._failed = True
            raise SystemExit(CLOSED_PIPE) from error
        except OSError as error:
            self._failed = True
            raise StorageError(f"stdout: cannot be written ({error.strerror})") from error
