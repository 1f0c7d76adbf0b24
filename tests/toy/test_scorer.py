"""The toy's preference: a small network that depends on the prompt and on the quality of the print."""

import json

import numpy as np
import pytest
import torch

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy import folder, prompts, scenes, scorer, train_scorer
from flowopd_cli.toy.draw import Wear, render


@pytest.fixture(scope="module")
def reward():
    return registry.REWARDS.load("toy-preference")()


def pictures(rows, wear=Wear()):
    rng = np.random.default_rng(0)
    drawn = [render(scenes.compose(prompt, rng, 2), wear, np.random.default_rng(1)) for prompt in rows]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("rows", [prompts.geneval("test")[-40:], prompts.ocr("test")[:40]], ids=["geneval", "ocr"])
def test_a_picture_is_preferred_with_its_own_prompt(reward, rows):
    images, others = pictures(rows), rows[1:] + rows[:1]
    assert (reward(images, rows).total > reward(images, others).total).float().mean() >= 0.8


@pytest.mark.parametrize("wear", [Wear(tint=0.6), Wear(stain=1.0), Wear(0.4, 0.3, 0.6)])
def test_a_clean_print_is_preferred_to_a_worn_one(reward, wear):
    rows = prompts.everything("test")[::8]
    assert (reward(pictures(rows), rows).total > reward(pictures(rows, wear), rows).total).float().mean() >= 0.9


def test_a_score_does_not_depend_on_the_batch_or_on_metadata(reward):
    rows = prompts.everything("test")[::40]
    images = pictures(rows)
    together = reward(images, rows)
    assert together.valid.all()
    assert ((together.total > 0) & (together.total < 1)).all()
    alone = [reward(images[i : i + 1], [Prompt("", prompt.text, "")]).total for i, prompt in enumerate(rows)]
    torch.testing.assert_close(torch.cat(alone), together.total, atol=1e-5, rtol=0)


def test_the_weights_are_small_and_shared(reward):
    file = folder() / "scorer" / "model.safetensors"
    assert file.stat().st_size <= 300_000
    assert sum(p.numel() for p in scorer.load(file.parent).parameters()) <= 150_000
    assert registry.REWARDS.load("toy-preference")()._scorer is reward._scorer


def test_the_short_name_the_suite_and_the_prompts_of_a_task(reward):
    assert (
        registry.REWARDS.on_base("preference", "toy")
        == registry.SUITES.on_base("preference", "toy")
        == "toy-preference"
    )
    suite = registry.SUITES.load("toy-preference")()
    assert type(suite.reward()) is type(reward)
    assert len(suite.prompts("test")) == 266
    assert {prompt.task for prompt in registry.PROMPTS.load("toy:preference")()} == {"preference"}
    assert registry.PROMPT_TASKS["toy:preference"] == ("preference",)


def test_two_steps_of_the_training_write_a_scorer_and_its_accuracies(tmp_path, monkeypatch):
    size = ["--pairs", 16, "--validation", 16, "--steps", 2, "--batch", 8, "--log", tmp_path / "log.jsonl"]
    monkeypatch.setattr("sys.argv", ["train_scorer", *map(str, [*size, "--out", tmp_path / "scorer"])])
    train_scorer.main()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["phase"] for row in rows] == ["pairs", "scorer", "scorer", "validation"]
    assert all(rows[1][name] == pytest.approx(np.log(2), abs=0.3) for name in ("pictures", "prompts"))
    assert 0 <= rows[-1]["all"] <= 1
    assert scorer.load(tmp_path / "scorer").query.weight.isfinite().all()
