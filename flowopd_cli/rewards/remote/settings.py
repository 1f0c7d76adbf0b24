"""The settings of a worker's server, from the flags of ``flowopd rewards serve``."""

from __future__ import annotations

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
PORT = 18085
DEQA_PORT = 18086
DPG_BENCH_PORT = 18087
PORTS = {"deqa": DEQA_PORT, "dpg-bench": DPG_BENCH_PORT}  # of the workers with environments of their own


@dataclass(frozen=True)
class Settings:
    """Where a worker listens and how it works. ``watch_parent`` ends it with the process that started it.

    Raises :class:`RewardError`: an address beyond this machine without a token, or a queue too short for a batch to
    form.
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


def from_flags(flags: Mapping[str, Any]) -> Settings:
    """Settings from the values of the flags by name; those left out have their defaults."""
    limits = {"pixels": "max_pixels", "body_bytes": "max_bytes", "queue_seconds": "queue_seconds"}
    names = ("host", "port", "max_batch", "linger", "watch_parent")
    return Settings(
        **{name: flags[name] for name in names if name in flags},
        token=read_token(flags.get("token_env", TOKEN_ENV), flags.get("token_file")),
        limits=Limits(**{limit: flags[name] for limit, name in limits.items() if name in flags}),
    )


def read_token(env: str = TOKEN_ENV, file: str | Path | None = None) -> str | None:
    """The token in a file or else in an environment variable; ``None`` where there is none."""
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
