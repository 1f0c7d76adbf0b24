"""Recipes: validation with one-line errors, overrides, round trips, the shelf."""

import subprocess
import sys

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RecipeError

TEACHER = {
    "stage": "teacher",
    "prompts": [{"source": "toy:geneval"}],
    "rewards": [{"name": "geneval"}],
}


def test_defaults_are_written_out_and_survive_a_round_trip(tmp_path):
    built = recipes.build(TEACHER)
    path = tmp_path / "r.yaml"
    path.write_text(recipes.dump(built), encoding="utf-8")
    again = recipes.load(path)
    assert again == built
    assert recipes.digest(again) == recipes.digest(built)
    assert "max_grad_norm" in path.read_text(encoding="utf-8")


def test_digest_tells_recipes_apart():
    assert recipes.digest(recipes.build(TEACHER)) != recipes.digest(recipes.build(TEACHER, overrides=["seed=1"]))


def test_overrides_beat_values_and_values_beat_the_file():
    built = recipes.build(TEACHER, overrides=["train.lr=0.5"], train__lr=0.25, train__groups=7)
    assert built.train.lr == 0.5
    assert built.train.groups == 7


def test_overrides_reach_into_lists():
    built = recipes.build(TEACHER, overrides=["rewards.0.weight=0.5"])
    assert built.rewards[0].weight == 0.5


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        recipes.build(TEACHER).seed = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.itertions=3", ["unknown key 'train.itertions'", "did you mean 'iterations'"]),
        ("trian.iterations=3", ["unknown key 'trian'", "did you mean 'train'"]),
        ("rewards.0.wieght=1", ["unknown key", "did you mean 'weight'"]),
        ("train.lr=-1", ["train.lr", "greater than 0"]),
        ("train.lr", ["section.field=value"]),
        ("train.lr=[", ["not YAML"]),
        ("seed.deep=1", ["seed", "valid integer"]),
        ("rewards.4.weight=1", ["'4' is not an index of a list of 1"]),
        ("rewards.0.name.first=1", ["name is a value, not a section"]),
        ("sampling.kernel=ode", ["GRPO needs a stochastic policy"]),
        ("sampling.steps=1", ["GRPO needs steps that draw noise", "set sampling.steps above 1"]),
        ("sampling.window={size: 4, start_max: 7}", ["reaches step 11 of 10"]),
        ("sampling.window={size: 1, start_min: 3, start_max: 2}", ["start_max 2 < start_min 3"]),
        ("sampling.window={size: 4, start_max: 6}", ["holds the last step", "at one of its starts only"]),
        ("stage=distill", ["is a distill recipe, but the command is teacher"]),
    ],
)
def test_mistakes_are_one_line_that_names_cause_and_way_out(override, words):
    with pytest.raises(RecipeError) as caught:
        recipes.build(TEACHER, overrides=[override], stage="teacher")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_stage_lists_the_known_ones():
    with pytest.raises(RecipeError, match="'pretrain' is not one of teacher, coldstart"):
        recipes.build({"stage": "pretrain"})


def test_score_estimator_needs_noise():
    data = {"stage": "distill", "prompts": TEACHER["prompts"], "routing": {"geneval": {"ref": "base"}}}
    assert recipes.build(data, overrides=["sampling.kernel=ode"]).opd.estimator == "pathwise"
    with pytest.raises(RecipeError, match="score needs a stochastic kernel"):
        recipes.build(data, overrides=["sampling.eta=0", "opd.estimator=score"])
    assert recipes.build(data, overrides=["sampling.steps=1"]).sampling.steps == 1
    with pytest.raises(RecipeError, match=r"score needs steps that draw noise.* sampling\.steps above 1"):
        recipes.build(data, overrides=["sampling.steps=1", "opd.estimator=score"])


DISTILL = {"stage": "distill", "prompts": [{"source": "toy:ocr"}], "routing": {"ocr": {"ref": "base"}}}


@pytest.mark.parametrize(
    ("overrides", "fused"),
    [
        (["train.updates=1"], True),
        (["train.updates=2"], False),
        (["train.updates=1", "opd.schedule=replay"], False),
        (["train.updates=1", "opd.estimator=score"], False),
        (["train.updates=1", "sampling.window={size: 2}"], False),
        (["train.updates=1", "sampling.window={size: 2}", "opd.schedule=fused"], True),
    ],
)
def test_one_pass_is_the_default_where_it_can_be(overrides, fused):
    assert recipes.build(DISTILL, overrides=overrides).fused is fused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["opd.schedule=fused"], "train.updates is 2: set it to 1, or opd.schedule to replay"),
        (["opd.schedule=fused", "opd.estimator=score", "train.updates=1"], "needs opd.estimator pathwise"),
        (["opd.schedule=both"], "'fused' or 'replay'"),
        (["anchor.every=2", "anchor.probability=0.5"], "leave one of them at 1"),
        (["anchor.probability=0"], "greater than 0"),
        (["train.steps_per_rollout=0"], "greater than 0"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused_in_one_line(overrides, words):
    with pytest.raises(RecipeError) as caught:
        recipes.build(DISTILL, overrides=overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cold_start_has_no_steps_to_choose_from():
    data = {"stage": "coldstart", "prompts": [{"source": "toy:ocr"}], "teachers": {"ocr": {"ref": "base"}}}
    with pytest.raises(RecipeError, match="a cold start learns pictures"):
        recipes.build(data, overrides=["train.steps_per_rollout=2"])


def test_logged_rewards_must_be_named():
    data = {"stage": "distill", "prompts": TEACHER["prompts"], "routing": {"geneval": {"ref": "base"}}}
    with pytest.raises(RecipeError, match=r"opd\.log_rewards_every has no rewards to log"):
        recipes.build(data, overrides=["opd.log_rewards_every=1"])
    assert recipes.build({**data, "rewards": TEACHER["rewards"]}, overrides=["opd.log_rewards_every=1"])


def test_merge_wants_one_weight_for_each_adapter():
    with pytest.raises(RecipeError, match="2 values for 3 adapters"):
        recipes.build({"stage": "merge", "adapters": ["a", "b", "c"], "merge": {"weights": [1, 2]}})


@pytest.mark.parametrize(("text", "words"), [("- a", "a recipe is a mapping"), ("a: [", "not YAML")])
def test_files_that_are_not_recipes(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=words):
        recipes.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        recipes.load(tmp_path / "none.yaml")


def test_find_takes_files_and_shipped_names(monkeypatch, tmp_path):
    file = tmp_path / "mine.yaml"
    monkeypatch.setattr("flowopd_cli.recipe_io.shipped", lambda: {"toy/distill": file})
    assert recipes.find(str(file)) == file
    assert recipes.find("toy/distill") == file
    with pytest.raises(RecipeError, match="did you mean 'toy/distill'"):
        recipes.find("toy/destill")


def test_recipe_layer_imports_no_torch():
    code = "import sys, flowopd_cli.recipe, flowopd_cli.run, flowopd_cli.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
