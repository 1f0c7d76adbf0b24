"""The public suites: protocol and averages."""

import pytest
import torch

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.suites import flow_grpo
from flowopd_cli.suites.base import NamedReward, SuiteGroup, score, summarize


def lines(tmp_path, *texts):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def test_scalar_suites_name_their_rewards_and_headlines(tmp_path):
    path = lines(tmp_path, 'a sign that says "OPEN"', 'a card with "TEA"')
    assert flow_grpo.ocr(prompts=path, reader="rapidocr").reward == NamedReward("ocr", {"reader": "rapidocr"})
    assert [p.metadata["target"] for p in flow_grpo.ocr(prompts=path).prompts("test")] == ["OPEN", "TEA"]
    assert flow_grpo.pickscore(prompts=path).score == "raw"
    judge = flow_grpo.deqa(prompts=path, reward="remote:http://gpu:1", timeout=5)
    assert judge.reward == NamedReward("remote:http://gpu:1", {"timeout": 5})
    assert judge.score == "score"


def test_drawbench_is_one_set_of_prompts_for_all_scorers(tmp_path):
    path = lines(tmp_path, "a horse", "a horse", "two horses")
    group = flow_grpo.drawbench(prompts=path, scorers=("aesthetic", "deqa"), options={"deqa": {"reward": "remote:x"}})
    assert isinstance(group, SuiteGroup)
    assert [suite.name for suite in group.suites] == ["drawbench-aesthetic", "drawbench-deqa"]
    assert group.suites[1].reward.name == "remote:x"
    one, two = (suite.prompts("test") for suite in group.suites)
    assert [p.text for p in one] == ["a horse", "two horses"]
    assert one == two


def test_the_average_is_that_of_four_scales():
    figures = {"geneval": 0.6, "ocr": 0.5, "deqa": 4.0, "pickscore": 20.8}
    results = {name: {"mean": value, "stderr": 0.0, "n": 10, "exact": True} for name, value in figures.items()}
    results["geneval"]["stderr"] = 0.04
    result = flow_grpo.combine(results)
    assert result["mean"] == pytest.approx((0.6 + 0.5 + 0.8 + 0.8) / 4)
    assert result["stderr"] == pytest.approx(0.01)
    assert result["n"] == 40
    assert result["exact"]
    del results["deqa"]
    assert flow_grpo.combine(results) is None
    assert [suite.name for suite in flow_grpo.average().suites] == ["geneval", "ocr", "deqa", "pickscore"]


@pytest.mark.parametrize(
    "name",
    [
        "average",
        "cvtg-2k",
        "deqa",
        "dpg-bench",
        "drawbench",
        "geneval",
        "geneval2",
        "longtext-bench",
        "ocr",
        "pickscore",
        "t2i-compbench",
    ],
)
def test_every_public_suite_is_made_without_any_file(name):
    suite_or_group = registry.SUITES.load(name)()
    for suite in suite_or_group.suites if isinstance(suite_or_group, SuiteGroup) else (suite_or_group,):
        assert suite.version
        assert isinstance(suite.reward, NamedReward)
        registry.REWARDS.check(suite.reward.name)


def test_an_inexact_reward_marks_its_suite():
    class Guess(Reward):
        info = RewardInfo("guess", "none", 0, 1, exact=False, note="a guess")
        engine = "guess-1"

        def __call__(self, images, prompts):
            return RewardResult(torch.ones(len(prompts)), {}, torch.ones(len(prompts), dtype=torch.bool))

    suite = flow_grpo.ocr()
    rows = score(suite, Guess(), torch.zeros(1, 3, 2, 2).byte(), [Prompt("0", "x", "ocr")], [0])
    result = summarize(suite, rows, {}, Guess())
    assert (result["exact"], result["engine"]) == (False, "guess-1")
    assert result["note"] == "a guess; judged by guess, not by ocr"
