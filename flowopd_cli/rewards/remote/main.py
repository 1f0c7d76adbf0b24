"""The command line of a worker script that lives in an environment of its own: ``run(load)``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowopd_cli.errors import FlowOPDError
from flowopd_cli.errors import one_line as shown_line
from flowopd_cli.rewards.remote.protocol import Limits, one_line
from flowopd_cli.rewards.remote.server import TOKEN_ENV, read_token, serve
from flowopd_cli.rewards.remote.service import Scorer, Settings


def run(load: Callable[[Mapping[str, Any]], Scorer], argv: Sequence[str] | None = None) -> None:
    """Serve what ``load(options)`` returns; a user's mistake is one line and exit code 2."""
    given = parser().parse_args(argv)
    try:
        options = json.loads(given.options)
        token = read_token(given.token_env, given.token_file)
        limits = Limits(queue_seconds=given.queue_seconds, pixels=given.max_pixels, body_bytes=given.max_bytes)
        settings = Settings(
            host=given.host,
            port=given.port,
            token=token,
            max_batch=given.max_batch,
            linger=given.linger,
            watch_parent=given.watch_parent,
            limits=limits,
        )
        serve(lambda: load(options), settings)
    except FlowOPDError as error:
        sys.exit(_said(2, str(error)))
    except (ImportError, OSError, TypeError, ValueError, RuntimeError) as error:
        sys.exit(_said(1, one_line(error)))


def parser() -> argparse.ArgumentParser:
    """The flags; :func:`arguments` writes them."""
    found = argparse.ArgumentParser(description="A scoring worker of flowopd.")
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=0)
    found.add_argument("--token-env", default=TOKEN_ENV)
    found.add_argument("--token-file", default=None)
    found.add_argument("--max-batch", type=int, default=Settings.max_batch)
    found.add_argument("--linger", type=float, default=Settings.linger)
    found.add_argument("--queue-seconds", type=float, default=Limits.queue_seconds)
    found.add_argument("--max-pixels", type=int, default=Limits.pixels)
    found.add_argument("--max-bytes", type=int, default=Limits.body_bytes)
    found.add_argument("--watch-parent", action="store_true")
    found.add_argument("--options", default="{}", help="The reward's options as a JSON object.")
    return found


def _said(code: int, line: str) -> int:
    print(f"flowopd: error: {shown_line(line)}", file=sys.stderr, flush=True)
    return code
