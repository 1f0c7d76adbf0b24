"""What ``flowopd rewards serve`` does: a reward for other processes, here or in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.rewards.catalog import scorer
from flowopd_cli.rewards.remote import deqa, isolated, server
from flowopd_cli.rewards.remote.protocol import Limits
from flowopd_cli.rewards.remote.service import Settings

PORT = deqa.PORT - 1


@dataclass(frozen=True)
class Service:
    """How a reward is to be served; ``port`` ``None`` is the reward's usual one."""

    host: str
    port: int | None
    token_env: str
    token_file: Path | None
    max_batch: int
    linger: float
    limits: Limits


def serve(name: str, options: Mapping[str, Any], service: Service) -> int:
    """Serve until stopped: here, or in an environment of its own when the reward has a worker script.

    Raises:
        RewardError: the reward is unknown, its environment cannot be made, or the address cannot be had.
    """
    token = server.read_token(service.token_env, service.token_file)
    server.check_open(service.host, token)
    script = isolated.find_script(name)
    port = service.port if service.port is not None else (deqa.PORT if name == "deqa" else PORT)
    settings = Settings(service.host, port, token, service.max_batch, service.linger, limits=service.limits)
    if script is not None:
        return isolated.run(name, script, _arguments(replace(service, port=port), options))
    registry.REWARDS.check(name)
    server.serve(lambda: scorer(name, options), settings)
    return 0


def _arguments(service: Service, options: Mapping[str, Any]) -> list[str]:
    """The flags of a worker script; the token itself is never among them."""
    given = {
        "host": service.host,
        "port": service.port,
        "token-env": service.token_env,
        "token-file": service.token_file,
        "max-batch": service.max_batch,
        "linger": service.linger,
        "queue-seconds": service.limits.queue_seconds,
        "max-pixels": service.limits.pixels,
        "max-bytes": service.limits.body_bytes,
        "options": json.dumps(dict(options)),
    }
    return [text for key, value in given.items() if value is not None for text in (f"--{key}", str(value))]
