"""Rewards from registry names: classes, factories and plain scoring functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.remote.settings import PORTS
from flowopd_cli.system.arguments import Options
from flowopd_cli.system.redact import REMOTE


def make_reward(target: Any, name: str, options: Mapping[str, Any]) -> Reward:
    """Make the reward of a registry name: a scoring function is wrapped, a class or factory is called.

    A function whose first two parameters are ``images`` and ``prompts`` is a scoring function; the options are its
    further arguments. Options are converted to the types that the target declares.

    Raises :class:`RewardError`: the options do not fit, or the target is not a reward.
    """
    options = convert_options(target, name, options)
    if _is_scoring_function(target):
        return FunctionReward(target, name, options)
    try:
        reward = target(**options)
    except TypeError as error:
        raise RewardError(f"reward {name}: {error}") from error
    if not isinstance(reward, Reward) or not isinstance(getattr(reward, "info", None), RewardInfo):
        raise RewardError(
            f"reward {name}: is not a reward: expected a subclass of flowopd_cli.rewards.base.Reward with an info, a "
            "factory that returns one, or a function f(images, prompts)"
        )
    return reward


def options_of(target: Any) -> Options:
    """The options of the target of a registry name: its parameters, of a scoring function those after the first two."""
    return Options.of(target, skip=2 if _is_scoring_function(target) else 0)


def convert_options(target: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe in the types that the reward declares; those without a type are passed as read.

    Raises :class:`RewardError`: an option is unknown, missing or of another type.
    """
    try:
        return options_of(target).convert(options)
    except ValueError as error:
        in_worker = name.startswith(REMOTE) or name in PORTS
        hint = "; the reward's own are set where it is served" if in_worker else ""
        raise RewardError(f"reward {name}: {error}{hint}") from error


def _is_scoring_function(target: Any) -> bool:
    return inspect.isfunction(target) and list(inspect.signature(target).parameters)[:2] == ["images", "prompts"]


class FunctionReward(Reward):
    """A function ``f(images, prompts, **options)`` that returns a number for each image, or a ``RewardResult``.

    ``None``, NaN and infinities make their image invalid. The function may have an attribute ``info``.
    """

    def __init__(self, function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
        self.function, self.name, self.options = function, name, dict(options)
        info = getattr(function, "info", None)
        default = RewardInfo(function.__name__, "none", -float("inf"), float("inf"))
        self.info = info if isinstance(info, RewardInfo) else default

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B images in [0, 1]. Raises :class:`RewardError`: the function did not return one number per image."""
        result = self.function(images, prompts, **self.options)
        if isinstance(result, RewardResult):
            return result
        try:
            result = result.detach() if isinstance(result, Tensor) else result
            entries = result.flatten().tolist() if hasattr(result, "flatten") else list(result)
            total = torch.tensor([float("nan") if value is None else float(value) for value in entries])
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name}: expected a number for each picture, got {type(result).__name__} ({error})"
            ) from error
        if len(total) != len(prompts):
            raise RewardError(f"reward {self.name}: gave {len(total)} scores for {len(prompts)} pictures")
        valid = torch.isfinite(total)
        details = tuple({} if good else {"error": f"{self.name} gave no finite number"} for good in valid.tolist())
        return RewardResult(total, {}, valid, details)
