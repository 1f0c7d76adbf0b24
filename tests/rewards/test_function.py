"""Plain functions, classes and factories as rewards."""

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.function import FunctionReward, make_reward

IMAGES = torch.rand(3, 3, 4, 4)
PROMPTS = [Prompt(str(i), "x", "t") for i in range(3)]


def reds(images, prompts, gain=1.0):
    return [gain * float(image[0].mean()) for image in images]


class Red(Reward):
    info = RewardInfo("red", "none", 0, 1)

    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, images, prompts):
        return RewardResult(torch.tensor(reds(images, prompts, self.gain)), {}, torch.ones(3, dtype=torch.bool))


def factory(gain=2.0):
    return Red(gain)


@pytest.mark.parametrize("target", [reds, Red, factory])
def test_all_three_kinds(target):
    reward = make_reward(target, "mine:it", {"gain": 3.0})
    result = reward(IMAGES, PROMPTS)
    assert result.total.tolist() == pytest.approx([3 * float(image[0].mean()) for image in IMAGES])
    assert result.valid.all()
    assert reward.info.name in ("reds", "red")


@pytest.mark.parametrize(
    "values",
    [torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([[1.0], [float("inf")], [3.0]]).numpy(), (1, None, 3)],
)
def test_a_value_that_is_not_finite_is_invalid(values):
    result = make_reward(lambda images, prompts: values, "mine:it", {})(IMAGES, PROMPTS)
    assert result.valid.tolist() == [True, False, True]
    assert result.total[[0, 2]].tolist() == [1, 3]
    assert "no finite number" in result.details[1]["error"]


def test_a_reward_result_is_returned_unchanged():
    result = RewardResult(torch.zeros(3), {"x": torch.ones(3)}, torch.zeros(3, dtype=torch.bool))
    assert make_reward(lambda images, prompts: result, "mine:it", {})(IMAGES, PROMPTS) is result


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0, 2.0], "gave 2 scores for 3 pictures"), (None, "for each picture, got NoneType"), ("abc", "got str")],
)
def test_values_that_are_not_scores(values, words):
    with pytest.raises(RewardError, match=f"mine:it: .*{words}"):
        make_reward(lambda images, prompts: values, "mine:it", {})(IMAGES, PROMPTS)


@pytest.mark.parametrize("target", [reds, Red, factory])
def test_options_that_do_not_fit(target):
    with pytest.raises(RewardError, match=r"mine:it: .*grain"):
        make_reward(target, "mine:it", {"grain": 1})


def test_options_get_their_types_and_untyped_ones_are_passed_as_read():
    def score(images, prompts, gain: float, exact: bool = False, free=1):
        return [gain + 10 * exact + (100 if free == "yes" else 0)] * len(prompts)

    reward = make_reward(score, "mine:it", {"gain": "1e-1", "exact": "yes", "free": "yes"})
    assert reward(IMAGES, PROMPTS).total.tolist() == pytest.approx([110.1] * 3)
    with pytest.raises(RewardError, match="reward mine:it: option gain: Input should be a valid number, not 'much'"):
        make_reward(score, "mine:it", {"gain": "much"})
    with pytest.raises(RewardError, match="reward mine:it: option 'gain' is missing; options: gain, exact, free"):
        make_reward(score, "mine:it", {})


@pytest.mark.parametrize("target", [dict, lambda: 3, lambda: reds])
def test_a_target_that_is_not_a_reward(target):
    with pytest.raises(RewardError, match="is not a reward"):
        make_reward(target, "mine:it", {})


def test_a_function_may_declare_itself():
    def score(images, prompts):
        return [0.0] * len(prompts)

    assert make_reward(score, "mine:score", {}).info.high == float("inf")
    score.info = RewardInfo("zero", "none", 0, 0)
    assert FunctionReward(score, "mine:score", {}).info.name == "zero"
