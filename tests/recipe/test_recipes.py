"""Recipes: validation with one-line errors, overrides, round trips, the shipped recipes."""

import re
import subprocess
import sys

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.flags import reward_spec
from flowopd_cli.errors import RecipeError, RewardError

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: &one 1\nstage: *one", [r"bad\.yaml:1: not YAML \(anchors"]),
        ("seed: 1\nseed: 2", [r"bad\.yaml:2: .*the key 'seed' is there twice"]),
        ("stage: merge\nadapters: [a]\nseed: 2001-13-01", ["seed: ", "integer"]),
        ("seed: !!python/object/apply:os.system [ls]", [r"bad\.yaml:1: ", "python/object"]),
        ("a: " + "[" * 2000, ["nested too deeply"]),
        ("a: " + "9" * 5000, [r"bad\.yaml:1: .* is no int"]),
        ("seed: " + "9" * 400, ["a number of more than 300 digits"]),
        ("a: .nan", [r"holds \.nan"]),
        ("a: !!binary aGk=", ["the kind bytes"]),
        ("true: 1", ["True is no name of a field"]),
        ('a: "x\\0y"', ["holds a NUL"]),
        ('a: "\\ud800"', ["half a surrogate pair"]),
        ("a: 1\n---\nb: 2", [r"bad\.yaml:2: .*another document"]),
        ("#" * 300_000, ["more than 256 KiB"]),
        ("stage: [teacher]", [r"stage \"\['teacher'\]\" is not one of"]),
        ("stage: merge\nadapters: [a]\nmerge: {weights: [.inf]}", ["merge.weights.0", "finite"]),
        ("stage: merge\nadapters: [http://u:S3CRET@h/a]", [r"adapters\.0: holds a login or a key"]),
        ("stage: merge\nadapters: [a]\nmodel: {revision: hf_S3CRETS3CRETS3CRET}", [r"model\.revision: holds a"]),
        ("stage: merge\nadapters: [a]\nhf_S3CRETS3CRETS3CRET: 1", [r"unknown key 'hf_\*\*\*'"]),
    ],
)
def test_what_a_recipe_may_not_hold(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    for word in words:
        assert re.search(word, str(caught.value))
    assert "S3CRET" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"seed: 1\nstage: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml:2: not UTF-8 text"):
        recipes.load(path)
    with pytest.raises(RecipeError, match="Is a directory"):
        recipes.load(tmp_path)


@pytest.mark.parametrize("override", ["a..b=1", "=1", ".=1", "rewards.\u00b2.weight=1", ".".join("a" * 99) + "=1"])
def test_dotted_keys_that_lead_nowhere(override):
    with pytest.raises(RecipeError, match=r"write it as|not an index|nested too deeply"):
        recipes.build(TEACHER, overrides=[override])


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "nul\0byte"])
def test_names_that_no_file_can_have_are_unknown_recipes(name):
    with pytest.raises(RecipeError, match="no recipe"):
        recipes.find(name)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\ufeff" + recipes.dump(recipes.build(TEACHER)), encoding="utf-8")
    assert recipes.load(path) == recipes.build(TEACHER)


SECRET_REWARDS = [
    {"name": "remote:http://u:S3CRET@host:1"},
    {"name": "remote:http://good:1,http://u:S3,CRET@host:1"},
    {"name": "remote:http://host:1/?key=S3CRET"},
    {"name": "remote:u:S3CRET@host"},
    {"name": "remote:http://host:1", "options": {"token": "S3CRET"}},
    {"name": "vlm", "options": {"api_key": "S3CRET"}},
    {"name": "vlm", "options": {"extra": {"Authorization": "Bearer S3CRET"}}},
    {"name": "vlm", "options": {"extra": {"secret": {"a": "S3CRET"}}}},
    {"name": "vlm", "options": {"url": ["http://good/v1", "http://host/v1?key=S3CRET"]}},
    {"name": "aesthetic", "options": {"head": "https://u:S3CRET@host/x.pth"}},
    {"name": "vlm", "options": {"hf_token": "S3CRET"}},
    {"name": "vlm", "options": {"openai_api_key": "S3CRET"}},
    {"name": "vlm", "options": {"aws-secret-key": "S3CRET"}},
]


@pytest.mark.parametrize("reward", SECRET_REWARDS)
def test_secrets_never_reach_a_recipe(reward):
    with pytest.raises(
        RecipeError, match=r"rewards\.0: .*would be written into recipe\.yaml; put .* environment"
    ) as no:
        recipes.build({**TEACHER, "rewards": [reward]})
    assert "S3" not in str(no.value)
    assert "CRET" not in str(no.value)


def test_a_suites_options_hold_no_secrets_either():
    for value in ({"reward": "remote:http://u:S3CRET@h:1"}, {"options": {"token": "S3CRET"}}):
        data = {"stage": "eval", "eval": {"options": {"deqa": value}}}
        with pytest.raises(RecipeError, match=r"would be written into recipe\.yaml") as caught:
            recipes.build(data)
        assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["remote:http://u:S3CRET@h/?key=S3CRET", "remote:http://u:a,x=S3CRET@h"])
def test_a_secret_on_the_command_line_is_not_repeated(text):
    with pytest.raises(RecipeError, match=r"--reward: the address of a worker holds a login") as caught:
        reward_spec(text)
    assert "S3CRET" not in str(caught.value)
    with pytest.raises(RewardError, match="reward 'remote:'") as unknown:
        registry.REWARDS.target("remote:u:S3CRET@h")
    assert "S3CRET" not in str(unknown.value)


def test_what_is_no_secret_is_taken():
    options = {
        "token_env": "MINE",
        "max_tokens": 5,
        "pad_token": "x",
        "key_env": "K",
        "weights": "facebook/x@abc",
        "url": "http://h:1/v1",
    }
    built = recipes.build({**TEACHER, "rewards": [{"name": "remote:http://a:1,http://b:2/x", "options": options}]})
    assert built.rewards[0].options == options


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
    monkeypatch.setattr("flowopd_cli.recipe.reading.shipped", lambda: {"toy/distill": file})
    assert recipes.find(str(file)) == file
    assert recipes.find("toy/distill") == file
    with pytest.raises(RecipeError, match="did you mean 'toy/distill'"):
        recipes.find("toy/destill")


def test_recipe_layer_imports_no_torch():
    code = (
        "import sys, flowopd_cli.recipe, flowopd_cli.runs.run, flowopd_cli.registry; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
