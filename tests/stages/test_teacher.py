"""Teachers of every algorithm: pictures without a score, iterations without any, a resume."""

import math

import pytest
import torch
from safetensors.torch import load_file
from support import copies
from support.recorders import Notes

from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import DivergedError
from flowopd_cli.reports import run_page
from flowopd_cli.runs.run import RunDir

FORWARD = {"levels": 2, "slow_rate": 0.1}
ALGORITHMS = {
    "grpo": None,
    "nft": {"algorithm": "nft", "nft": {"beta": 0.5, **FORWARD}},
    "awm": {"algorithm": "awm", "awm": FORWARD},
}
PICTURES = 12  # three groups of four


@pytest.fixture(params=ALGORITHMS)
def recipe(request, tmp_path, pipeline_folder):
    """Makes the recipe of an algorithm, with changes to ``train``."""
    copies.prepare(tmp_path, pipeline_folder)
    defaults = {"iterations": 2, "updates": 2, "rollout_batch": 12, "checkpoint_every": 1}
    method = ALGORITHMS[request.param]
    return lambda **train: copies.recipe("teacher", tmp_path, pipeline_folder, method, **{**defaults, **train})


@pytest.fixture
def scored(monkeypatch):
    """Scores two thirds of the pictures, in coarse steps; returns a list of how many each call was asked for."""
    counts = []

    def score(self, images, prompts):
        counts.append(len(prompts))
        total = images.mean((1, 2, 3))
        return RewardResult((total * 20).round() / 20, {}, (total * 1e4).long() % 3 > 0)

    monkeypatch.setattr(copies.Light, "__call__", score)
    return counts


def states(run, step):
    return load_file(run.checkpoints.path(step) / "state.safetensors")


def test_pictures_without_a_score_are_drawn_again(recipe, scored, tmp_path):
    plain, refilled = (
        copies.train(tmp_path / name, recipe(iterations=1, refill=most)).rows() for name, most in (("p", 0), ("r", 99))
    )
    assert all(row["invalid"] > 0 and "refilled" not in row for row in plain)
    assert all(row["invalid"] == 0 and row["refilled"] > 0 for row in refilled)
    assert refilled[0]["refilled"] >= PICTURES * plain[0]["invalid"]
    assert sum(scored) == 2 * PICTURES + sum(row["refilled"] for row in refilled)


def test_no_more_are_drawn_than_allowed_in_fresh_groups_too(recipe, scored, tmp_path):
    rows = copies.train(tmp_path / "r", recipe(refill=7, resample_flat=3)).rows()
    assert all(0 < row["refilled"] <= 7 for row in rows)
    assert sum(row["resampled_groups"] for row in rows) > 0


def test_a_resumed_run_draws_the_same_again(recipe, scored, tmp_path):
    changes = {"refill": 7, "resample_flat": 3}
    whole, parts = (copies.train(tmp_path / str(n), recipe(iterations=n, **changes)) for n in (2, 1))
    parts = RunDir.open(parts.path)
    run_stage(Plan.of(recipe(iterations=2, **changes)), parts, Notes(), resume=True)
    assert all(torch.equal(states(parts, 2)[name], value) for name, value in states(whole, 2).items())
    figures = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in whole.rows()]
    assert [{k: row[k] for k in ours} for row, ours in zip(parts.rows(), figures, strict=True)] == figures


def test_a_reward_that_never_scores_costs_the_limit_and_warns(recipe, monkeypatch, tmp_path):
    counts = []

    def nothing(self, images, prompts):
        counts.append(len(prompts))
        return RewardResult(torch.zeros(len(prompts)), {}, torch.zeros(len(prompts), dtype=torch.bool))

    monkeypatch.setattr(copies.Light, "__call__", nothing)
    run = copies.train(tmp_path / "r", recipe(refill=5))
    assert sum(counts) == 2 * (PICTURES + 5)
    rows = run.rows()
    assert [(row["step"], row["invalid"], row["refilled"], row["reward"]) for row in rows] == [(0, 1, 5, None)] * 2
    (event,) = run.events()
    assert "no picture of this iteration could be scored" in event["text"]
    for name, value in states(run, 1).items():
        if name.startswith("policy"):
            assert torch.equal(states(run, 2)[name], value), name


def test_a_step_that_is_not_finite_is_skipped_and_counted(recipe, tmp_path):
    """One step at this learning rate is enough to spoil all that follow."""
    with pytest.raises(DivergedError):
        copies.train(tmp_path / "r", recipe(iterations=9, lr=1e30, skip_limit=2))
    row = RunDir(tmp_path / "r").rows()[0]
    assert (row["step"], row["skipped"]) == (1, 1)
    assert any(event["kind"] == "skipped" and event["prompts"] for event in RunDir(tmp_path / "r").events())


def test_a_run_has_its_average_its_samples_and_a_report_with_its_algorithm(recipe, tmp_path):
    built = recipe(iterations=1, sample_every=1)
    run = copies.train(tmp_path / "r", built)
    policy, average = (
        [v for k, v in states(run, 1).items() if k.startswith(f"{n}/")] for n in ("policy", "policy_ema")
    )
    saved = load_file(run.adapter_dir / "adapter_model.safetensors").values()
    total = sum(float(value.abs().sum()) for value in saved)
    assert total == pytest.approx(sum(float(value.abs().sum()) for value in average), rel=1e-5)
    assert not math.isclose(total, sum(float(value.abs().sum()) for value in policy), rel_tol=1e-5)
    assert run.sample_file(1).is_file()
    name = {"grpo": "GRPO", "nft": "DiffusionNFT", "awm": "AWM"}[built.algorithm]
    assert run_page.page(run, tmp_path / "report.html").lead.startswith(f"A teacher trained with {name} on ")
