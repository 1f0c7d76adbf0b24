"""Any reward behind the worker's protocol, and ``flowopd rewards serve``, which serves one."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flowopd_cli import __version__, registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import MissingDependency, PromptError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote.protocol import NEUTRAL_OPTIONS, Answer, Refusal, path_digest
from flowopd_cli.rewards.remote.settings import from_flags
from flowopd_cli.rewards.weights import split_digest

SOURCE = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?|https?://\S+")
PORT = 18085
ENGINES = ("reader", "detector")


class RewardScorer:
    """A reward behind the worker's protocol. ``options`` are those that ``factory`` made it with."""

    def __init__(self, name: str, reward: Reward, options: Mapping[str, Any], factory: Any = None) -> None:
        self.reward = reward
        info = reward.info
        self.info: Mapping[str, Any] = {
            "reward": name,
            "package": f"flowopd {__version__}",
            "weights": weights_of(reward, effective_options(factory, options)),
            "options": {key: value for key, value in options.items() if key not in NEUTRAL_OPTIONS},
            **{key: getattr(info, key) for key in ("paper", "low", "high", "higher_is_better", "license")},
            "exact": info.exact,
            "note": info.note,
        }

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Let the reward refuse prompts.

        Raises:
            Refusal: it does (422).
        """
        try:
            self.reward.check([Prompt(**prompt) for prompt in prompts])
        except PromptError as error:
            raise Refusal(422, str(error)) from error

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """Score pictures of any sizes; those of one size go to the reward together."""
        records = [Prompt(**prompt) for prompt in prompts]
        rows: list[tuple[float, dict[str, float], bool, dict[str, Any]]] = [(0.0, {}, False, {})] * len(pictures)
        for size in dict.fromkeys(picture.size for picture in pictures):
            indices = [i for i, picture in enumerate(pictures) if picture.size == size]
            try:
                result = self.reward(to_tensor([pictures[i] for i in indices]), [records[i] for i in indices])
            except PromptError as error:
                raise Refusal(422, str(error)) from error
            _refuse_lengths(result, len(indices))
            for row, i in enumerate(indices):
                scores = {name: float(column[row]) for name, column in result.scores.items()}
                details = dict(result.details[row]) if result.details else {}
                rows[i] = float(result.total[row]), scores, bool(result.valid[row]), details
        names = list(dict.fromkeys(name for _, scores, _, _ in rows for name in scores))
        return Answer(
            [total for total, *_ in rows],
            {name: [scores.get(name) for _, scores, _, _ in rows] for name in names},
            [valid for _, _, valid, _ in rows],
            [details for *_, details in rows],
        )


def load_scorer(name: str, options: Mapping[str, Any]) -> RewardScorer:
    """A reward of the registry, ready to be served.

    Raises:
        RewardError: it is unknown, or an option is wrong.
    """
    factory = registry.REWARDS.load(name)
    return RewardScorer(name, make_reward(factory, name, options), options, factory)


def serve(name: str, options: Mapping[str, Any], flags: Mapping[str, Any]) -> int:
    """Serve a reward until stopped: here, or in an environment of its own when it has a worker script. ``flags`` are
    those of :func:`flowopd_cli.rewards.remote.settings.parser`, by name.

    Raises:
        RewardError: a flag is wrong, the reward is unknown, its environment cannot be made, or the address is taken.
        MissingDependency: the extra ``worker`` is not installed.
    """
    settings = from_flags(flags)
    script = isolated.find_script(name)
    if script is not None:
        arguments = {**flags, "options": json.dumps(dict(options))}
        texts = [f"--{key.replace('_', '-')}={value}" for key, value in arguments.items() if value is not None]
        return isolated.run(name, script, texts)
    registry.REWARDS.check(name)
    try:
        from flowopd_cli.rewards.remote import server
    except ImportError as error:
        raise MissingDependency(error.name or "uvicorn", extra="worker") from error
    server.serve(lambda: load_scorer(name, options), settings)
    return 0


def effective_options(factory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reward, its constructor's defaults included."""
    try:
        parameters = inspect.signature(factory).parameters if factory is not None else {}
    except (TypeError, ValueError):
        parameters = {}
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


def _refuse_lengths(result: RewardResult, count: int) -> None:
    for name, column in {"total": result.total, "valid": result.valid, **result.scores}.items():
        if tuple(column.shape) != (count,):
            raise Refusal(500, f"the reward gave {name} of shape {tuple(column.shape)} for {count} pictures")
