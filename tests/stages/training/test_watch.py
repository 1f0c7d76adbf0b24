"""The watch: held-out prompts, baseline, figures, and what a failure leaves."""

import pytest
import torch
from support import toyruns

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.prompts import sources
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.runs import inspect
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.watch import make_watch
from flowopd_cli.system.progress import Silent

WATCH = ("train.watch_every=2", "watch.groups=2", "watch.group_size=2")
SMALL = (*toyruns.SMALL, "train.iterations=3", "train.sample_every=0", *WATCH)


ROUTES = (
    "routing={geneval: {ref: base, guidance: 1}, ocr: {ref: base, guidance: 3}}",
    *(toyruns.TWO_TASKS, "rewards=[]", "adapter.init=null", "anchor.beta=0"),
)


class Gone(Reward):
    """Fails in its third call, and counts how often it is made."""

    info = RewardInfo("gone", "made up", 0, 1)
    made = calls = 0

    def __init__(self):
        Gone.made += 1

    def __call__(self, images, prompts):
        Gone.calls += 1
        if Gone.calls == 3:
            raise RewardError("the worker is gone")
        return RewardResult(images.mean((1, 2, 3)), {}, torch.ones(len(images), dtype=torch.bool))


def build(*overrides, name="toy/teacher-quality-grpo"):
    return recipes.build(recipes.read(recipes.find(name)), overrides=[*SMALL, *overrides])


def perform(path, built, *, resume=False):
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    run_stage(Plan.of(built), run, Silent(), resume=resume)
    return run


def test_the_prompts_are_held_out_where_the_source_has_a_validation_split(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TRAIN_PROMPTS", 60)
    texts = tmp_path / "a.txt"
    texts.write_text("a red circle\na blue square")
    assert {p.id.split("/")[1] for p in make_watch(build("watch.groups=9"), None).draw.prompts} == {"validation"}
    own = f"watch.prompts=[{{source: '{texts}', task: x}}]"
    assert {p.text for p in make_watch(build(own), None).draw.prompts} == {"a red circle", "a blue square"}
    public = make_watch(build("prompts=[{source: geneval}]"), None)  # its splits are train and test
    assert {p.task for p in public.draw.prompts} == {"geneval"}
    assert make_watch(build("train.watch_every=0"), None) is None


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    rewards = "watch.rewards=[{name: quality}, {name: toy-ocr, task: ocr}]"
    return perform(tmp_path_factory.mktemp("watch") / "r", build(rewards, "watch.groups=4"))


def test_a_watch_logs_its_figures_from_the_start_to_the_end(watched):
    rows = watched.rows()
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert ["watch/reward" in row for row in rows] == [True, False, True, True]
    figures = {"reward", "reward/quality", "reward/ocr", "invalid", "latent_norm", "brightness", "saturation"}
    figures |= {"high_frequency", "diversity", "kl_base"}
    for row in (rows[0], rows[2], rows[3]):
        assert {name.removeprefix("watch/") for name in row if name.startswith("watch/")} == figures
        assert row["seconds_watch"] > 0
        assert 0 < row["watch/diversity"] < 1.2
    assert rows[0]["watch/kl_base"] == 0
    assert 0 < rows[2]["watch/kl_base"] < rows[3]["watch/kl_base"]
    assert all(0 < row["latent_norm"] < 10 for row in rows[1:])
    assert [finding for finding in inspect.verify(watched.path) if not finding.ok] == []


def test_a_watch_changes_nothing_of_the_training(watched, tmp_path):
    plain = perform(tmp_path / "r", build("train.watch_every=0"))
    ours = [{k: v for k, v in row.items() if not k.startswith(("watch/", "seconds"))} for row in watched.rows()[1:]]
    assert ours == toyruns.figures(plain.path)
    weights = [run.adapter_dir / "adapter_model.safetensors" for run in (watched, plain)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_watch_that_fails_leaves_its_iteration_logged_and_saved(tmp_path):
    named = f"watch.rewards=[{{name: '{__name__}:Gone'}}]"
    Gone.made = Gone.calls = 0
    built = build(named, "train.watch_every=1", "train.checkpoint_every=50")
    with pytest.raises(RewardError, match="the worker is gone"):
        perform(tmp_path / "r", built)
    run = RunDir(tmp_path / "r")
    assert [row["iteration"] for row in run.rows()] == [0, 1, 2]
    assert run.checkpoints.newest()[0] == 2
    perform(tmp_path / "r", built, resume=True)
    assert ["watch/reward/gone" in row for row in run.rows()] == [True, True, False, True]


def test_a_reward_that_is_trained_and_watched_is_loaded_once(tmp_path):
    Gone.made, Gone.calls = 0, 9
    own = f"rewards=[{{name: '{__name__}:Gone'}}]"
    run = perform(tmp_path / "r", build(own, "train.iterations=1"))
    assert run.rows()[0]["watch/reward"] == run.rows()[0]["watch/reward/gone"]
    assert Gone.made == 1


@pytest.mark.parametrize("name", ["toy/distill", "toy/coldstart"])
def test_stages_without_rewards_watch_the_pictures(tmp_path, name):
    teachers = "teachers" if name == "toy/coldstart" else "routing"
    sections = ("sft.samples=4", "sft.batch=4") if name == "toy/coldstart" else ("anchor.ref=base",)
    base = f"{teachers}={{geneval: {{ref: base, guidance: 3}}, ocr: {{ref: base, guidance: 3}}}}"
    run = perform(
        tmp_path / "r", build(base, toyruns.TWO_TASKS, "rewards=[]", "adapter.init=null", *sections, name=name)
    )
    first, last = run.rows()[0], run.rows()[-1]
    assert "watch/reward" not in first
    distance = "watch/distance_base" if name == "toy/coldstart" else "watch/kl_base"  # its sampler has no noise
    assert first[distance] == 0 < last[distance]
    assert 0 < first["watch/brightness"] < 1


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A distillation whose student begins as the teacher of one of two tasks."""
    return perform(tmp_path_factory.mktemp("distilled") / "r", build(*ROUTES, name="toy/distill"))


def test_a_distillation_watches_the_kl_to_each_teacher_at_fixed_states(distilled):
    first, last = distilled.rows()[0], distilled.rows()[-1]
    for name in ("watch/kl", "watch/kl_noised"):
        assert first[f"{name}/geneval"] == pytest.approx(0, abs=1e-12)
        assert last[f"{name}/geneval"] > 1e-9
        assert first[f"{name}/ocr"] > 1e-6
    assert first["watch/kl/ocr"] != first["watch/kl_noised/ocr"]


def test_a_resumed_distillation_watches_the_same_states(distilled, tmp_path):
    perform(tmp_path / "r", build(*ROUTES, "train.iterations=2", name="toy/distill"))
    resumed = perform(tmp_path / "r", build(*ROUTES, name="toy/distill"), resume=True)
    assert toyruns.figures(resumed.path) == toyruns.figures(distilled.path)


def test_with_substeps_the_kl_is_that_to_the_average_over_the_step(tmp_path):
    run = perform(tmp_path / "r", build(*ROUTES, "train.iterations=1", "opd.teacher_substeps=2", name="toy/distill"))
    for name in ("watch/kl", "watch/kl_noised"):
        assert run.rows()[0][f"{name}/geneval"] > 1e-6  # though the student begins as that teacher


def test_a_watched_prompt_without_a_teacher_has_no_kl_to_one(tmp_path):
    other = "watch.prompts=[{source: toy:quality}, {source: toy:ocr}]"
    run = perform(tmp_path / "r", build(*ROUTES, other, "train.iterations=1", name="toy/distill"))
    names = {name for name in run.rows()[0] if name.startswith("watch/kl/")}
    assert names == {"watch/kl/ocr"}
