"""The rewards that ``flowopd rewards ls`` lists, and the scores that ``flowopd rewards score`` prints."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import FlowOPDError, PromptError, RewardError
from flowopd_cli.prompts.files import load_prompts
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.function import convert_options, options_of
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote.protocol import Refusal, prompt_record
from flowopd_cli.rewards.remote.worker import load_scorer
from flowopd_cli.system.pictures import read_picture


def listing() -> list[dict[str, Any]]:
    """A row for each reward of the registry."""
    return [row(name) for name in registry.REWARDS.names()]


def row(name: str) -> dict[str, Any]:
    """The row of one reward: whether it is installed, and its description."""
    entry: dict[str, Any] = {"name": name, "target": registry.REWARDS.target(name)}
    try:
        target = registry.REWARDS.load(name)
    except FlowOPDError as error:
        return {**entry, "installed": "no", "note": str(error)}
    own = info = getattr(target, "info", None)
    if own is None:  # a factory chooses the weights when it is called; its annotation names the class
        with suppress(NameError, TypeError):
            info = getattr(typing.get_type_hints(target).get("return"), "info", None)
    if not isinstance(info, RewardInfo):
        return {**entry, "installed": "?", "note": ""}
    declared = {key: getattr(info, key) for key in ("low", "high", "paper", "license", "extra", "exact", "note")}
    if own is None:
        declared |= {"exact": None, "license": "", "note": ""}
    return {**entry, "installed": "worker" if isolated.find_script(name) else installed(info.extra), **declared}


def options(name: str) -> list[dict[str, Any]]:
    """A row for each option that a reward declares; :class:`RewardError` if the reward cannot be imported."""
    return [
        {"option": o.name, "type": o.type_name, "required": o.required, "default": o.shown_default}
        for o in options_of(registry.REWARDS.load(name)).named.values()
    ]


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Refuse options that a reward does not take; it is imported, but not made. Raises :class:`RewardError`."""
    convert_options(registry.REWARDS.load(name), name, values)


def installed(extra: str | None) -> str:
    """``yes`` or ``no`` for the packages of an extra; ``?`` where flowopd itself is not an installed package."""
    if not extra:
        return "yes"
    try:
        requirements = [Requirement(line) for line in metadata.requires("flowopd") or ()]
    except metadata.PackageNotFoundError:
        return "?"
    needed = [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra}) and r.name != "flowopd"]
    if not needed:
        return "?"
    return "yes" if all(any(metadata.distributions(name=requirement.name)) for requirement in needed) else "no"


def score(
    name: str, options: Mapping[str, Any], pictures: Sequence[Path], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """A row for each picture file: total, validity, scores and details."""
    scorer = load_scorer(name, options)
    scorer.reward.check(prompts)
    images = [read_picture(path) for path in pictures]
    try:
        answer = scorer(images, [prompt_record(prompt) for prompt in prompts])
    except Refusal as error:
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
    """A prompt per picture, from one for all ``count`` or one each; ``PromptError`` for any other number."""
    if bool(texts) == (file is not None):
        raise PromptError("say what the pictures should show: --prompt TEXT, or --prompts FILE with a line for each")
    prompts = load_prompts(file, task=task or "") if file else [Prompt(t, t, task or "") for t in texts]
    if len(prompts) not in (1, count):
        raise PromptError(f"{len(prompts)} prompts for {count} pictures: give one for all, or one for each")
    return prompts * count if len(prompts) == 1 else prompts
