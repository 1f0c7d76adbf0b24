"""Any reward as a worker: pictures and prompts from the wire into the reward, its scores back onto the wire.

What happens on the network is ``rewards/serving``, which knows neither torch nor rewards.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flowopd_cli import __version__
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.remote.protocol import NEUTRAL, Answer, Refusal
from flowopd_cli.rewards.weights import path_digest, split_digest

SOURCE = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?|https?://\S+")
ENGINES = ("reader", "detector")


class RewardScorer:
    """A reward behind the worker's protocol. ``options`` are those it was made with, ``made_by`` what made it."""

    def __init__(self, name: str, reward: Reward, options: Mapping[str, Any], made_by: Any = None) -> None:
        self.reward = reward
        info = reward.info
        self.info: Mapping[str, Any] = {
            "reward": name,
            "package": f"flowopd {__version__}",
            "weights": weights_of(reward, effective_options(made_by, options)),
            "options": {key: value for key, value in options.items() if key not in NEUTRAL},
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
            chosen = [i for i, picture in enumerate(pictures) if picture.size == size]
            try:
                result = self.reward(to_tensor([pictures[i] for i in chosen]), [records[i] for i in chosen])
            except PromptError as error:
                raise Refusal(422, str(error)) from error
            _refuse_lengths(result, len(chosen))
            for place, i in enumerate(chosen):
                rows[i] = _row(result, place)
        names = list(dict.fromkeys(name for row in rows for name in row[1]))
        return Answer(
            [row[0] for row in rows],
            {name: [row[1].get(name) for row in rows] for name in names},
            [row[2] for row in rows],
            [row[3] for row in rows],
        )


def effective_options(made_by: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options a reward was made with, its constructor's defaults included."""
    try:
        parameters = inspect.signature(made_by).parameters if made_by is not None else {}
    except (TypeError, ValueError):
        parameters = {}
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return {**defaults, **options}


def weights_of(reward: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """What says which weights score: a reward's own ``weights`` mapping, else what its options name.

    Files and folders go in by their SHA-256, Hub ids (with their revision) and URLs as they are, and a reader or
    detector by its name, for what ``auto`` chose may differ from machine to machine.
    """
    if reward.weights:
        return {str(name): str(value) for name, value in reward.weights.items()}
    engines = {name: getattr(getattr(reward, name, None), "name", None) for name in ENGINES}
    found = {name: value for name, value in engines.items() if isinstance(value, str)}
    for name, value in options.items():
        if not isinstance(value, (str, Path)) or not str(value):
            continue
        value = split_digest(str(value))[0]
        if Path(value).exists():
            found[name] = path_digest(Path(value))
        elif SOURCE.fullmatch(str(value)):
            revision = options.get("revision" if name == "model" else f"{name}_revision")
            found[name] = f"{value}@{revision}" if revision else str(value)
    return found


def _refuse_lengths(result: RewardResult, count: int) -> None:
    columns = {"total": result.total, "valid": result.valid, **result.scores}
    for name, column in columns.items():
        if tuple(column.shape) != (count,):
            raise Refusal(500, f"the reward gave {name} of shape {tuple(column.shape)} for {count} pictures")


def _row(result: RewardResult, place: int) -> tuple[float, dict[str, float], bool, dict[str, Any]]:
    scores = {name: float(column[place]) for name, column in result.scores.items()}
    details = dict(result.details[place]) if result.details else {}
    return float(result.total[place]), scores, bool(result.valid[place]), details
