"""Any reward behind the worker's protocol, and ``flowopd rewards serve``, which serves one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flowopd_cli import __version__, registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import MissingDependency, PromptError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.function import convert_options, make_reward
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote.protocol import ENGINES, NEUTRAL_OPTIONS, Answer, Refusal
from flowopd_cli.rewards.remote.settings import from_flags
from flowopd_cli.rewards.weights import path_digest, split_digest

SOURCE = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?|https?://\S+")


class RewardScorer:
    """A reward behind the worker's protocol. ``options`` are those that ``factory`` made it with."""

    def __init__(self, name: str, reward: Reward, options: Mapping[str, Any], factory: Any = None) -> None:
        self.reward = reward
        declared = ("paper", "low", "high", "higher_is_better", "license", "exact", "note")
        self.info: Mapping[str, Any] = {
            "reward": name,
            "package": f"flowopd {__version__}",
            "weights": weights_of(reward, effective_options(factory, options)),
            "options": {key: value for key, value in options.items() if key not in NEUTRAL_OPTIONS},
            **{key: getattr(reward.info, key) for key in declared},
        }

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Let the reward refuse prompts, by ``Refusal`` (422)."""
        try:
            self.reward.check([Prompt(**prompt) for prompt in prompts])
        except PromptError as error:
            raise Refusal(422, str(error)) from error

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """Score pictures of any sizes; those of one size go to the reward together."""
        count = len(pictures)
        total: list[float | None] = [None] * count
        valid, details = [False] * count, [dict[str, Any]() for _ in pictures]
        scores: dict[str, list[float | None]] = {}
        for size in dict.fromkeys(picture.size for picture in pictures):
            indices = [i for i, picture in enumerate(pictures) if picture.size == size]
            try:
                result = self.reward(to_tensor([pictures[i] for i in indices]), [Prompt(**prompts[i]) for i in indices])
            except PromptError as error:
                raise Refusal(422, str(error)) from error
            for name, column in {"total": result.total, "valid": result.valid, **result.scores}.items():
                if column.shape != (len(indices),):
                    shape = tuple(column.shape)
                    raise Refusal(500, f"the reward gave {name} of shape {shape} for {len(indices)} pictures")
            for row, i in enumerate(indices):
                total[i], valid[i] = float(result.total[row]), bool(result.valid[row])
                details[i] = dict(result.details[row]) if result.details else {}
                for name, column in result.scores.items():
                    scores.setdefault(name, [None] * count)[i] = float(column[row])
        return Answer(total, scores, valid, details)


def load_scorer(name: str, options: Mapping[str, Any]) -> RewardScorer:
    """A reward of the registry, ready to be served; ``RewardError`` when it is unknown or an option is wrong."""
    factory = registry.REWARDS.load(name)
    return RewardScorer(name, make_reward(factory, name, options), options, factory)


def serve(name: str, options: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    """Serve a reward until stopped: here, or in an environment of its own when it has a worker script.

    Raises :class:`RewardError`: a flag is wrong, the reward is unknown, its environment cannot be made, or the address
    is taken.
    Raises :class:`MissingDependency`: the extra ``worker`` is not installed.
    """
    settings = from_flags(flags)
    script = isolated.find_script(name)
    if script is not None:
        isolated.run(name, script, {**flags, "options": dict(options)})
    registry.REWARDS.check(name)
    convert_options(registry.REWARDS.load(name), name, options)
    try:
        from flowopd_cli.rewards.remote import server
    except ImportError as error:
        raise MissingDependency(error.name or "uvicorn", extra="worker") from error
    server.serve(lambda: load_scorer(name, options), settings)


def effective_options(factory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reward, its constructor's defaults included."""
    parameters = inspect.signature(factory).parameters if callable(factory) else {}
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **options}


def weights_of(reward: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """The weights that score: a reward's own ``weights`` mapping, else those that its options name.

    Files and folders are given by their SHA-256, Hub ids (with their revision) and URLs as they are, and a reader or
    detector by its name, because ``auto`` may choose another one on another machine.
    """
    if reward.weights:
        return {str(name): str(value) for name, value in reward.weights.items()}
    engines = {name: getattr(getattr(reward, name, None), "name", None) for name in ENGINES}
    weights = {name: value for name, value in engines.items() if isinstance(value, str)}
    for name, value in options.items():
        if not isinstance(value, (str, Path)) or not str(value):
            continue
        value = split_digest(str(value))[0]
        if Path(value).exists():
            weights[name] = path_digest(Path(value))
        elif SOURCE.fullmatch(value):
            revision = options.get("revision" if name == "model" else f"{name}_revision")
            weights[name] = f"{value}@{revision}" if revision else value
    return weights
