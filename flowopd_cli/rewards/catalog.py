"""What ``flowopd rewards`` lists, and the scores that it gives to pictures from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import FlowOPDError, PromptError, RewardError
from flowopd_cli.prompts.load import load_prompts
from flowopd_cli.rewards.about import info_of, installed
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.rewards.pictures import read_picture
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.worker import RewardScorer


def listing() -> list[dict[str, Any]]:
    """A row for each reward of the registry."""
    return [row(name) for name in registry.REWARDS.names()]


def score(
    name: str, options: Mapping[str, Any], pictures: Sequence[Path], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """A row for each picture file: total, validity, scores and details.

    Raises:
        RewardError, PromptError, ArtifactError: the reward, a prompt or a picture cannot be used.
    """
    made = scorer(name, options)
    check = getattr(made.reward, "check", None)
    if check is not None:
        check(prompts)
    opened = [read_picture(path) for path in pictures]
    try:
        answer = wire.cleaned(made(opened, [wire.prompt_tree(prompt) for prompt in prompts]), len(opened))
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


def scorer(name: str, options: Mapping[str, Any]) -> RewardScorer:
    """A reward of the registry as the thing that answers for it, here or over HTTP."""
    found = registry.REWARDS.load(name)
    return RewardScorer(name, make_reward(found, name, options), options, found)


def row(name: str) -> dict[str, Any]:
    """What ``flowopd rewards ls`` says of one reward."""
    worker = isolated.find_script(name) is not None
    try:
        found, reason = registry.REWARDS.load(name), ""
    except FlowOPDError as error:
        found, reason = None, str(error)
    info = info_of(found)
    told: dict[str, Any] = {"name": name, "target": registry.REWARDS.target(name)}
    if info is None:
        return {**told, "installed": "no" if reason else "?", "note": reason}
    about = {key: getattr(info, key) for key in ("paper", "license", "extra", "exact", "note")}
    if getattr(found, "info", None) is None:  # a factory: whose weights it takes is its own affair
        about |= {"exact": None, "license": "", "note": ""}
    return {
        **told,
        "installed": "worker" if worker else installed(info.extra),
        "low": info.low,
        "high": info.high,
        **about,
    }
