"""What ``flowopd rewards`` does: list, score pictures from files, serve a reward to other processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from flowopd_cli import registry
from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError, FlowOPDError, PromptError, RewardError
from flowopd_cli.prompts import load_prompts
from flowopd_cli.rewards import deqa, isolated
from flowopd_cli.rewards.about import info_of, installed
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.rewards.serve import RewardScorer
from flowopd_cli.rewards.serving import server, wire
from flowopd_cli.rewards.serving.service import Settings
from flowopd_cli.rewards.serving.wire import Limits

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


def listing() -> list[dict[str, Any]]:
    """A row for each reward of the registry."""
    return [_row(name) for name in registry.REWARDS.names()]


def score(
    name: str, options: Mapping[str, Any], pictures: Sequence[Path], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """A row for each picture file: total, validity, scores and details.

    Raises:
        RewardError, PromptError, ArtifactError: the reward, a prompt or a picture cannot be used.
    """
    scorer = _scorer(name, options)
    check = getattr(scorer.reward, "check", None)
    if check is not None:
        check(prompts)
    opened = [_open(path) for path in pictures]
    try:
        answer = wire.cleaned(scorer(opened, [wire.prompt_tree(prompt) for prompt in prompts]), len(opened))
    except wire.Refusal as error:
        raise RewardError(f"reward {name}: {error}") from error
    return [
        {
            "image": str(path),
            "prompt": prompts[i].text,
            "valid": answer.valid[i],
            "total": answer.total[i],
            "scores": {key: column[i] for key, column in answer.scores.items()},
            "details": answer.details[i],
        }
        for i, path in enumerate(pictures)
    ]


def paired(texts: Sequence[str], file: str | None, task: str | None, count: int) -> list[Prompt]:
    """A prompt for each of ``count`` pictures: one for all, or one each.

    Raises:
        PromptError: there are none, or another number of them.
    """
    if bool(texts) == (file is not None):
        raise PromptError("say what the pictures should show: --prompt TEXT, or --prompts FILE with a line for each")
    found = load_prompts(file, task=task or "") if file else [Prompt(t, t, task or "") for t in texts]
    if len(found) not in (1, count):
        raise PromptError(f"{len(found)} prompts for {count} pictures: give one for all, or one for each")
    return found * count if len(found) == 1 else found


def serve(name: str, options: Mapping[str, Any], service: Service) -> int:
    """Serve until stopped: here, or in an environment of its own when the reward has a worker script.

    Raises:
        RewardError: the reward is unknown, its environment cannot be made, or the address cannot be had.
    """
    token = server.read_token(service.token_env, service.token_file)
    server.check_open(service.host, token)
    script = isolated.find_script(name)
    port = service.port if service.port is not None else (deqa.PORT if name == "deqa" else PORT)
    if script is not None:
        return isolated.run(name, script, _arguments(replace(service, port=port), options))
    registry.REWARDS.check(name)
    settings = Settings(service.host, port, token, service.max_batch, service.linger, limits=service.limits)
    server.serve(lambda: _scorer(name, options), settings)
    return 0


def _scorer(name: str, options: Mapping[str, Any]) -> RewardScorer:
    found = registry.REWARDS.load(name)
    return RewardScorer(name, make_reward(found, name, options), options, found)


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


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{path}: cannot be read as a picture ({error})") from error


def _row(name: str) -> dict[str, Any]:
    worker = isolated.find_script(name) is not None
    try:
        found, reason = registry.REWARDS.load(name), ""
    except FlowOPDError as error:
        found, reason = None, str(error)
    info = info_of(found)
    row: dict[str, Any] = {"name": name, "target": registry.REWARDS.target(name)}
    if info is None:
        return {**row, "installed": "no" if reason else "?", "note": reason}
    told = {key: getattr(info, key) for key in ("paper", "license", "extra", "exact", "note")}
    if getattr(found, "info", None) is None:  # a factory: whose weights it takes is its own affair
        told |= {"exact": None, "license": "", "note": ""}
    return {
        **row,
        "installed": "worker" if worker else installed(info.extra),
        "low": info.low,
        "high": info.high,
        **told,
    }
