"""A user's own plain function as a reward, beside classes and factories that are rewards already."""

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

PARAMETERS = ["images", "prompts"]


def make_reward(found: Any, name: str, options: Mapping[str, Any]) -> Reward:
    """What a registry name stands for as a reward: a scoring function is wrapped, anything else is called.

    A function whose first two parameters are ``images`` and ``prompts`` scores by itself, and the options are its
    further arguments; a class, or any other function, returns the reward and takes the options.

    Raises:
        RewardError: the options do not fit, or what came out is no reward.
    """
    try:
        if is_scoring_function(found):
            inspect.signature(found).bind(None, None, **options)
            return FunctionReward(found, name, options)
        reward: Any = found(**options)
    except TypeError as error:
        raise RewardError(f"reward {name}: {error}") from error
    sound = callable(reward) and isinstance(getattr(reward, "info", None), RewardInfo)
    if not sound:
        raise RewardError(
            f"reward {name}: is no reward: want a class or a factory whose result has an info, "
            "or a function f(images, prompts)"
        )
    return reward


def is_scoring_function(found: Any) -> bool:
    """Whether this is a plain function ``f(images, prompts, ...)``."""
    return inspect.isfunction(found) and list(inspect.signature(found).parameters)[:2] == PARAMETERS


class FunctionReward:
    """A function ``f(images, prompts, **options)`` that returns a number for each picture, or a ``RewardResult``.

    ``None``, NaN and infinities make their picture invalid. A function may declare itself by an attribute ``info``.
    """

    def __init__(self, function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
        self.function, self.name, self.options = function, name, dict(options)
        infinite = float("inf")
        own = getattr(function, "info", None)
        self.info = own if isinstance(own, RewardInfo) else RewardInfo(function.__name__, "none", -infinite, infinite)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures in [0, 1].

        Raises:
            RewardError: not one number for each picture came back.
        """
        result = self.function(images, prompts, **self.options)
        if isinstance(result, RewardResult):
            return result
        values = self._numbers(result)
        if len(values) != len(prompts):
            raise RewardError(f"reward {self.name}: gave {len(values)} scores for {len(prompts)} pictures")
        total = torch.tensor(values, dtype=torch.float32)
        valid = torch.isfinite(total)
        details = tuple({} if good else {"error": f"{self.name} gave no finite number"} for good in valid.tolist())
        return RewardResult(total, {}, valid, details)

    def _numbers(self, result: Any) -> list[float]:
        try:
            result = result.detach() if isinstance(result, Tensor) else result
            entries = result.flatten().tolist() if hasattr(result, "flatten") else list(result)
            return [float("nan") if value is None else float(value) for value in entries]
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name}: want a number for each picture, got {type(result).__name__} ({error})"
            ) from error
