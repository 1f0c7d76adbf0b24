"""Seeds, rows and figures of a suite."""

import math

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.suites.base import Suite, aggregate, image_seed, score, summarize


def test_a_seed_depends_on_suite_seed_prompt_and_index():
    assert image_seed(42, "a", 0) == image_seed(42, "a", 0)
    seeds = {image_seed(s, p, i) for s in (1, 2) for p in ("a", "b") for i in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_headline_is_the_mean_of_the_tags_without_nan():
    means, mean, _ = aggregate([1, 1, 1, 0, math.nan], [*"pqrst"], [*"xxxyy"])
    assert (means, mean) == ({"x": 1.0, "y": 0.0}, 0.5)
    assert aggregate([math.nan], ["p"], [""])[0] == {}


def test_the_error_is_that_of_the_prompts_means_and_errors_of_tags_add_in_squares():
    _, _, stderr = aggregate([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [*"ppqqrr"], [""] * 6)
    assert stderr == pytest.approx(math.sqrt(0.25 / 3))
    _, _, one = aggregate([1.0, 0.0], [*"pq"], [*"xx"])
    _, _, both = aggregate([1.0, 0.0, 1.0, 0.0], [*"pqrs"], [*"xxyy"])
    assert both == pytest.approx(one * math.sqrt(2) / 2)


def test_the_mean_is_over_pictures_and_the_error_over_prompts():
    _, mean, stderr = aggregate([1.0, 1.0, 1.0, 0.0], [*"pppq"], [""] * 4)
    assert mean == 0.75
    assert stderr == pytest.approx(math.sqrt(0.5 / 2))  # of the prompts' means, 1 and 0


def test_weights_pool_pictures_and_equal_weights_change_nothing():
    values, clusters, weights = [1.0, 0.5, 0.25, math.nan], [*"ppqr"], [1.0, 2.0, 8.0, 5.0]
    _, mean, stderr = aggregate(values, clusters, [""] * 4, weights)
    assert mean == pytest.approx((1 + 1 + 2) / 11)
    deviations = [(1 + 1) - 3 * mean, 2 - 8 * mean]  # of a ratio of sums, by the linearized formula
    assert stderr == pytest.approx(math.sqrt(2 / 1 * sum(d**2 for d in deviations)) / 11)
    plain, equal = (aggregate([1.0, 0.0, 0.5, 0.0], [*"ppqq"], [""] * 4, some) for some in (None, [3.0] * 4))
    assert equal[1:] == pytest.approx(plain[1:])


class Bright(Reward):
    info = RewardInfo("bright", "none", 0, 1)

    def __call__(self, images, prompts):
        total = images.mean(dim=(1, 2, 3))
        valid = torch.tensor([p.text != "broken" for p in prompts])
        return RewardResult(total, {"half": total / 2}, valid)


def suite(score=None):
    return Suite("s", "s-1", lambda split: [], Bright, score=score)


BLACK_AND_WHITE = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 255)]).byte()


def scored(suite, texts, images=BLACK_AND_WHITE):
    prompts = [Prompt(f"p{i}", text, "a") for i, text in enumerate(texts)]
    return score(suite, Bright(), images, prompts, [0] * len(texts))


def test_rows_have_the_scores_and_the_summary_their_figures_and_protocol():
    rows = scored(suite(), ("x", "y"))
    assert [row["value"] for row in rows] == [0.0, 1.0]
    assert (rows[1]["prompt"], rows[1]["task"], rows[1]["text"], rows[1]["scores"]) == ("p1", "a", "y", {"half": 0.5})
    assert [row["value"] for row in scored(suite("half"), ("x", "y"))] == [0.0, 0.5]
    result = summarize(suite(), rows, {"steps": 4}, Bright())
    assert (result["mean"], result["n"], result["invalid"], result["version"]) == (0.5, 2, 0, "s-1")
    assert result["figures"] == {"half": 0.25}
    assert result["protocol"] == {"steps": 4}
    assert (result["reward"], result["engine"], result["exact"]) == ("bright", "bright", True)


def test_invalid_pictures_are_counted_and_left_out():
    rows = scored(suite(), ("x", "broken"), torch.ones(2, 3, 2, 2).byte() * 255)
    assert rows[1]["value"] is None
    result = summarize(suite(), rows, {}, Bright())
    assert (result["mean"], result["n"], result["invalid"]) == (1.0, 1, 1)
    with pytest.raises(RewardError, match="no picture"):
        summarize(suite(), rows[1:], {}, Bright())


def test_pictures_of_one_id_in_two_tasks_are_two_clusters():
    same_ids = [Prompt("00000", "x", "a"), Prompt("00000", "y", "b")]
    rows = score(suite(), Bright(), torch.zeros(2, 3, 2, 2).byte(), same_ids, [0, 0])
    assert summarize(suite(), rows, {}, Bright())["prompts"] == 2
