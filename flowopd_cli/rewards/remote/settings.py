"""The settings of a worker's server, made from flags here and in worker scripts."""

from __future__ import annotations

import argparse
import ipaddress
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.protocol import Limits, one_line

TOKEN_ENV = "FLOWOPD_REWARD_TOKEN"


@dataclass(frozen=True)
class Settings:
    """Where a worker listens and how it works. ``watch_parent`` ends it with the process that started it.

    Raises:
        RewardError: an address beyond this machine without a token, or a queue too short for a batch to form.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    max_batch: int = 32
    linger: float = 0.01
    watch_parent: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise RewardError(
                f"--host {self.host}: other machines could reach it, so it needs a token: "
                f"set {TOKEN_ENV} (or name --token-env or --token-file), or leave out --host"
            )
        if not 0 <= self.linger < self.limits.queue_seconds < threading.TIMEOUT_MAX:
            raise RewardError(
                f"--queue-seconds {self.limits.queue_seconds:g} must be above --linger {self.linger:g}, "
                "which must not be negative: no request may leave the queue before its batch is complete"
            )


def parser() -> argparse.ArgumentParser:
    """The flags of a worker script."""
    flags = argparse.ArgumentParser(description="A scoring worker of flowopd.")
    flags.add_argument("--host", default=Settings.host)
    flags.add_argument("--port", type=int, default=Settings.port)
    flags.add_argument("--token-env", default=TOKEN_ENV)
    flags.add_argument("--token-file")
    flags.add_argument("--max-batch", type=int, default=Settings.max_batch)
    flags.add_argument("--linger", type=float, default=Settings.linger)
    flags.add_argument("--queue-seconds", type=float, default=Limits.queue_seconds)
    flags.add_argument("--max-pixels", type=int, default=Limits.pixels)
    flags.add_argument("--max-bytes", type=int, default=Limits.body_bytes)
    flags.add_argument("--watch-parent", action="store_true")
    flags.add_argument("--options", default="{}", help="The reward's options as a JSON object.")
    return flags


def from_flags(flags: Mapping[str, Any]) -> Settings:
    """Settings from the values of :func:`parser`'s flags, by name.

    Raises:
        RewardError: the token cannot be read, or the settings are refused.
    """
    sizes = {"pixels": flags["max_pixels"], "body_bytes": flags["max_bytes"]}
    return Settings(
        host=flags["host"],
        port=flags["port"],
        token=read_token(flags["token_env"], flags["token_file"]),
        max_batch=flags["max_batch"],
        linger=flags["linger"],
        watch_parent=flags.get("watch_parent", False),
        limits=Limits(queue_seconds=flags["queue_seconds"], **sizes),
    )


def read_token(env: str = TOKEN_ENV, file: str | Path | None = None) -> str | None:
    """The token in a file or else in an environment variable; ``None`` where there is none.

    Raises:
        RewardError: the file cannot be read, or the token is empty or not visible ASCII.
    """
    try:
        token = Path(file).read_text(encoding="ascii").strip() if file is not None else os.environ.get(env)
    except (OSError, ValueError) as error:
        raise RewardError(f"token file {file}: cannot be read ({one_line(error)})") from error
    if token is not None and (not token or not all(33 <= ord(letter) < 127 for letter in token)):
        source = f"file {file}" if file is not None else f"variable {env}"
        raise RewardError(f"the token in the {source} must be visible ASCII letters, at least one")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
