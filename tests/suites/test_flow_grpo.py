"""The public suites: protocol, layout and averages, on prompt files made here."""

import json

import pytest
import torch

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.suites import flow_grpo, geneval
from flowopd_cli.suites.base import NamedReward, SuiteGroup, score, summarize

ROWS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def lines(tmp_path, *texts):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def test_geneval_is_four_pictures_of_each_metadata_row(metadata):
    suite = geneval.geneval(prompts=str(metadata), threshold=0.5)
    prompts = suite.prompts("test")
    assert [(p.id, p.task, p.metadata["tag"]) for p in prompts] == [
        ("00000", "geneval", "single_object"),
        ("00001", "geneval", "colors"),
    ]
    assert (suite.images, suite.score, suite.tagged) == (4, "official", True)
    assert suite.reward == NamedReward("geneval", {"score": "official", "threshold": 0.5})


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
    found = {name: {"mean": value, "stderr": 0.0, "n": 10, "exact": True} for name, value in figures.items()}
    found["geneval"]["stderr"] = 0.04
    result = flow_grpo.combine(found)
    assert result["mean"] == pytest.approx((0.6 + 0.5 + 0.8 + 0.8) / 4)
    assert result["stderr"] == pytest.approx(0.01)
    assert result["n"] == 40
    assert result["exact"]
    del found["deqa"]
    assert flow_grpo.combine(found) is None
    assert [suite.name for suite in flow_grpo.average().suites] == ["geneval", "ocr", "deqa", "pickscore"]


def test_a_result_file_of_the_official_scorer(tmp_path):
    rows = [
        {"tag": row["tag"], "metadata": json.dumps(row), "correct": correct, "filename": "x", "reason": ""}
        for row, verdicts in zip(ROWS, ((True, True), (True, False)), strict=True)
        for correct in verdicts
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = geneval.read_official(tmp_path)
    assert result["mean"] == 0.75
    assert result["by_tag"] == {"single_object": 1.0, "colors": 0.5}
    assert (result["n"], result["prompts"]) == (4, 2)


@pytest.mark.parametrize(
    "row",
    [
        '{"tag": "colors"}',
        '{"tag": "colors", "metadata": "", "correct": 2}',
        '{"tag": ["colors"], "metadata": "", "correct": true}',
        '{"tag": "shapes", "metadata": "", "correct": true}',
    ],
)
def test_a_result_file_of_somebody_else(tmp_path, row):
    (tmp_path / "results.jsonl").write_text(f"{row}\n")
    with pytest.raises(ArtifactError, match=r"no result file of GenEval's .* row 1 lacks"):
        geneval.read_official(tmp_path)
    (tmp_path / "results.jsonl").write_text(f"[1]\n{row}\n")
    with pytest.raises(ArtifactError, match=r"results\.jsonl:1: not JSON, or not an object"):
        geneval.read_official(tmp_path)


@pytest.mark.parametrize("name", ["average", "deqa", "drawbench", "geneval", "ocr", "pickscore", "t2i-compbench"])
def test_every_public_suite_is_made_without_any_file(name):
    made = registry.SUITES.load(name)()
    for suite in made.suites if isinstance(made, SuiteGroup) else (made,):
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
    assert (result["exact"], result["note"], result["engine"]) == (
        False,
        "a guess; judged by guess, not by ocr",
        "guess-1",
    )
