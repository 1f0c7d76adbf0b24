"""The weighted mixture of rewards."""

import math
import threading
from types import SimpleNamespace

import pytest
import torch
from support.tiny import make_draw, make_sampler

from flowopd_cli.core.advantages import group_advantages
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo, RewardMix, Weighted, unique_names
from flowopd_cli.rewards.jpeg import JpegReward
from flowopd_cli.train import collect

A, B = Prompt("1", "x", "a"), Prompt("2", "y", "b")


class Constant(Reward):
    def __init__(self, name, value, valid=True, extra=None):
        self.info, self.value, self.valid, self.extra = RewardInfo(name, "none", 0, 1), value, valid, extra or {}
        self.calls = []

    def __call__(self, images, prompts):
        self.calls.append([p.id for p in prompts])
        count = len(prompts)
        total = torch.full((count,), self.value)
        valid = torch.full((count,), self.valid)
        details = tuple({"by": self.info.name} for _ in prompts)
        return RewardResult(total, {k: torch.full((count,), v) for k, v in self.extra.items()}, valid, details)

    def check(self, prompts):
        if any(p.text == "bad" for p in prompts):
            raise PromptError("bad prompt")


def test_weights_add_up_and_each_reward_scores_its_task():
    one, two = Constant("one", 1.0), Constant("two", 0.5, extra={"fine": 0.25})
    result = RewardMix([Weighted(one, 2.0, "a"), Weighted(two, 1.0)])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.total.tolist() == [2.5, 0.5]
    assert one.calls == [["1"]]
    assert two.calls == [["1", "2"]]
    assert math.isnan(float(result.scores["one"][1]))
    assert result.scores["two/fine"].tolist() == [0.25, 0.25]
    assert result.details[1] == {"two": {"by": "two"}}


def test_a_reward_whose_lower_is_better_counts_against():
    worse = Constant("error", 0.25)
    worse.info = RewardInfo("error", "none", 0, 1, higher_is_better=False)
    mix = RewardMix([Weighted(Constant("one", 1.0)), Weighted(worse, 2.0), Weighted(Constant("logged", 1.0), 0.0)])
    result = mix(torch.zeros(2, 3, 4, 4), [A, B])
    assert mix.weights == {"one": 1.0, "error": -2.0}
    assert result.total.tolist() == [0.5, 0.5]
    assert result.scores["error"].tolist() == [0.25, 0.25]


def test_rewards_of_one_name_do_not_overwrite_each_other():
    parts = [Weighted(Constant("vlm", value, extra={"raw": value * 5})) for value in (0.25, 0.5, 1.0)]
    result = RewardMix(parts)(torch.zeros(1, 3, 4, 4), [A])
    assert {name: column.item() for name, column in result.scores.items()} == {
        **{"vlm": 0.25, "vlm/raw": 1.25, "vlm-2": 0.5, "vlm-2/raw": 2.5},
        **{"vlm-3": 1.0, "vlm-3/raw": 5.0},
    }
    assert set(result.details[0]) == {"vlm", "vlm-2", "vlm-3"}
    assert unique_names(["a", "a-2", "a", "b", "a"]) == ("a", "a-2", "a-3", "b", "a-4")
    assert unique_names(["a", "a", "a-2", "a-2"]) == ("a", "a-3", "a-2", "a-2-2")


def test_one_invalid_score_makes_the_picture_invalid():
    failing = Constant("failing", 0.0, valid=False, extra={"more": 0.0})
    mix = RewardMix([Weighted(failing, task="a"), Weighted(Constant("sound", 0.5))])
    result = mix(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.valid.tolist() == [False, True]
    assert result.scores["failing"].isnan().all()
    assert result.scores["failing/more"].isnan().all()
    assert result.scores["sound"].tolist() == [0.5, 0.5]


def test_a_prompt_to_which_no_reward_applies_is_invalid():
    result = RewardMix([Weighted(Constant("one", 1.0), task="a")])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.valid.tolist() == [True, False]


def test_each_reward_checks_the_prompts_of_its_task():
    bad = Prompt("3", "bad", "b")
    RewardMix([Weighted(Constant("one", 1.0), task="a")]).check([A, bad])
    with pytest.raises(PromptError):
        RewardMix([Weighted(Constant("one", 1.0))]).check([A, bad])


def test_a_total_that_is_not_finite_is_invalid():
    mix = RewardMix([Weighted(Constant("one", float("nan")), task="a"), Weighted(Constant("two", 0.5))])
    result = mix(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.valid.tolist() == [False, True]
    assert math.isnan(float(result.total[0]))
    assert result.total[1] == 0.5


def test_concurrent_rewards_run_while_others_compute():
    met = threading.Barrier(3, timeout=5)

    class Waiting(Constant):
        concurrent = True

        def __call__(self, images, prompts):
            met.wait()
            return super().__call__(images, prompts)

    class Computing(Constant):
        def __call__(self, images, prompts):
            assert threading.current_thread() is threading.main_thread()
            met.wait()
            return super().__call__(images, prompts)

    parts = [Waiting("one", 1.0), Computing("two", 0.5), Waiting("three", 0.25)]
    result = RewardMix([Weighted(part) for part in parts])(torch.zeros(2, 3, 4, 4), [A, B])
    assert result.total.tolist() == [1.75, 1.75]
    assert list(result.scores) == ["one", "two", "three"]


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1)])
def test_scores_of_another_shape_are_refused(shape):
    class Wrong(Constant):
        def __call__(self, images, prompts):
            good = torch.ones(len(prompts), dtype=torch.bool)
            return SimpleNamespace(total=torch.ones(shape), scores={}, valid=good, details=())

    with pytest.raises(RewardError, match=r"reward one: gave scores of shape .* for 2 pictures"):
        RewardMix([Weighted(Wrong("one", 1.0))])(torch.zeros(2, 3, 4, 4), [A, B])


def test_an_invalid_picture_leaves_its_group_and_is_never_zero(model):
    """Through ``train/collect`` into the advantages: the others' are as if it had not been drawn."""
    draw = make_draw(tasks="aaaaaa", groups="000111")
    rolled = collect.with_images(model, collect.rollout(model, make_sampler(model), draw, adapter=None))
    totals = torch.tensor([1.0, 2.0, 0.0, 3.0, 5.0, 7.0])

    class Broken(Constant):
        def __call__(self, images, prompts):
            valid = torch.tensor([True, True, False, True, True, True])
            return RewardResult(totals, {}, valid, tuple({} for _ in prompts))

    scored = collect.with_rewards(rolled, RewardMix([Weighted(Broken("one", 0.0))]))
    assert math.isnan(float(scored.rewards.total[2]))
    advantages = collect.with_advantages(scored, std="group", clip=9.0).advantages
    others = torch.tensor([0, 1, 3, 4, 5])
    alone = group_advantages(totals[others], draw.group[others], std="group")
    assert torch.allclose(advantages[others], alone)
    assert advantages[2] == 0
    figures = collect.reward_figures(collect.scores_of_all(scored))
    assert figures["reward"] == pytest.approx(float(totals[others].mean()))
    assert figures["invalid"] == pytest.approx(1 / 6)


def test_a_picture_with_non_finite_pixels_is_invalid_for_every_reward():
    images = torch.rand(2, 3, 16, 16)
    images[1, 0, 3, 4] = float("nan")
    result = RewardMix([Weighted(JpegReward())])(images, [A, B])
    assert result.valid.tolist() == [True, False]
    assert result.total.isnan().tolist() == [False, True]
    assert all(column.isnan().tolist() == [False, True] for column in result.scores.values())
    assert "not finite" in result.details[1]["error"]
