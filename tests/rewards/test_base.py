"""The weighted mixture of rewards."""

import math

import pytest
import torch

from flowopd_cli.core.types import Prompt, RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import RewardInfo, RewardMix, Weighted

A, B = Prompt("1", "x", "a"), Prompt("2", "y", "b")


class Constant:
    def __init__(self, name, value, valid=True, extra=None):
        self.info, self.value, self.valid, self.extra = RewardInfo(name, "none", 0, 1), value, valid, extra or {}
        self.asked = []

    def __call__(self, images, prompts):
        self.asked.append([p.id for p in prompts])
        count = len(prompts)
        total = torch.full((count,), self.value)
        valid = torch.full((count,), self.valid)
        details = tuple({"by": self.info.name} for _ in prompts)
        return RewardResult(total, {k: torch.full((count,), v) for k, v in self.extra.items()}, valid, details)

    def check(self, prompts):
        if any(p.text == "bad" for p in prompts):
            raise PromptError("bad prompt")


def test_weights_add_up_and_tasks_are_asked_apart():
    one, two = Constant("one", 1.0), Constant("two", 0.5, extra={"fine": 0.25})
    result = RewardMix([Weighted(one, 2.0, "a"), Weighted(two, 1.0)])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.total.tolist() == [2.5, 0.5]
    assert one.asked == [["1"]]
    assert two.asked == [["1", "2"]]
    assert math.isnan(float(result.scores["one"][1]))
    assert result.scores["two/fine"].tolist() == [0.25, 0.25]
    assert result.details[1] == {"two": {"by": "two"}}


def test_a_reward_whose_lower_is_better_counts_against():
    worse = Constant("error", 0.25)
    worse.info = RewardInfo("error", "none", 0, 1, higher_is_better=False)
    result = RewardMix([Weighted(Constant("one", 1.0)), Weighted(worse, 2.0)])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.total.tolist() == [0.5, 0.5]
    assert result.scores["error"].tolist() == [0.25, 0.25]


def test_one_invalid_score_makes_the_picture_invalid():
    mix = RewardMix([Weighted(Constant("one", 1.0)), Weighted(Constant("two", 1.0, valid=False), task="b")])
    result = mix(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.valid.tolist() == [True, False]
    assert math.isnan(float(result.scores["two"][1]))


def test_a_prompt_that_no_reward_is_asked_about_is_invalid():
    result = RewardMix([Weighted(Constant("one", 1.0), task="a")])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.valid.tolist() == [True, False]


def test_check_asks_each_reward_about_its_own_prompts():
    bad = Prompt("3", "bad", "b")
    RewardMix([Weighted(Constant("one", 1.0), task="a")]).check([A, bad])
    with pytest.raises(PromptError):
        RewardMix([Weighted(Constant("one", 1.0))]).check([A, bad])
