"""Recipes: validation with one-line errors, overrides, round trips, the shipped recipes."""

import re

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.flags import reward_spec
from flowopd_cli.errors import RecipeError, RewardError

TEACHER = {"stage": "teacher", "prompts": [{"source": "toy:geneval"}], "rewards": [{"name": "geneval"}]}
COLDSTART = {"stage": "coldstart", "prompts": [{"source": "toy:ocr"}], "teachers": {"ocr": {"ref": "base"}}}
DISTILL = {"stage": "distill", "prompts": [{"source": "toy:ocr"}], "routing": {"ocr": {"ref": "base"}}}
MERGE = {"stage": "merge", "adapters": ["a", "b", "c"]}


def test_defaults_are_written_out_and_survive_a_round_trip(tmp_path):
    recipe = recipes.build(TEACHER)
    path = tmp_path / "r.yaml"
    path.write_text("\ufeff" + recipes.dump(recipe), encoding="utf-8")
    again = recipes.load(path)
    assert again == recipe
    assert recipes.digest(again) == recipes.digest(recipe)
    assert recipes.digest(again) != recipes.digest(recipes.build(TEACHER, overrides=["seed=1"]))
    assert "max_grad_norm" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_overrides_reach_into_sections_and_lists_but_do_not_change_the_stage():
    overrides = ["train.lr=0.5", "rewards.0.weight=0.5"]
    recipe = recipes.build({**TEACHER, "train": {"lr": 0.25}}, overrides=overrides)
    assert (recipe.train.lr, recipe.rewards[0].weight) == (0.5, 0.5)
    with pytest.raises(RecipeError, match="is a distill recipe, but the command is teacher"):
        recipes.build(DISTILL, stage="teacher")


@pytest.mark.parametrize(
    ("data", "overrides", "words"),
    [
        (TEACHER, "train.itertions=3", ["unknown key 'train.itertions'", "did you mean 'iterations'"]),
        (TEACHER, "rewards.0.wieght=1", ["unknown key", "did you mean 'weight'"]),
        (DISTILL, "routing.ocr=[{ref: a, weight: 0}]", ["routing.ocr.0.weight", "write a number above 0, or meta:KEY"]),
        (DISTILL, "routing.ocr=[{ref: a, weight: x}]", ["routing.ocr.0.weight", "'x' is no weight"]),
        (DISTILL, "routing.ocr=[{ref: a, weihgt: 1}]", ["unknown key 'routing.ocr.0.weihgt'"]),
        (DISTILL, "routing.ocr=[]", ["at least 1"]),
        (DISTILL, "train.query.law=beta(0,1)", ["no law 'beta(0,1)'"]),
        (DISTILL, "train.query.law=beta(51,2)", ["no law 'beta(51,2)'", "at most 50"]),
        (DISTILL, "routing.ocr=[{ref: a, weight: 1e308}]", ["routing.ocr.0.weight", "no weight"]),
        (DISTILL, 'routing={"a.1": {ref: a}, a: [{ref: a}, {ref: b}]}', ["routing.a.1: a teacher of a has this name"]),
        (DISTILL, "train.query.law=beta(5,2)", ["no choice while all steps are trained"]),
        (DISTILL, "routing.ocr.guidence=1", ["unknown key", "did you mean 'guidance'"]),
        (DISTILL, "routing.ref={ref: base, guidence: 1}", ["unknown key 'routing.ref.guidence'"]),
        (TEACHER, "train.lr=-1", ["train.lr", "greater than 0"]),
        (TEACHER, "train.lr", ["section.field=value"]),
        (TEACHER, "train.lr=[", ["not YAML"]),
        (TEACHER, "seed.deep=1", ["seed", "valid integer"]),
        (TEACHER, f"seed={2**63}", ["seed", "less than 9223372036854775808"]),
        (TEACHER, f"seed={-(2**63) - 1}", ["seed", "greater than or equal to -9223372036854775808"]),
        (TEACHER, "rewards.4.weight=1", ["'4' is not an index of a list of 1"]),
        (TEACHER, "rewards.0.name.first=1", ["name is a value, not a section"]),
        (TEACHER, "a..b=1", ["write it as"]),
        (TEACHER, ".".join("a" * 99) + "=1", ["nested too deeply"]),
        (TEACHER, "sampling.kernel=ode", ["GRPO needs a stochastic kernel"]),
        (TEACHER, "sampling.steps=1", ["GRPO needs a step that draws noise", "set sampling.steps > 1"]),
        (TEACHER, "sampling.window={size: 4, start_max: 7}", ["reaches step 11 of 10"]),
        (TEACHER, "sampling.window={size: 1, start_min: 3, start_max: 2}", ["start_max 2 < start_min 3"]),
        (TEACHER, "sampling.window={size: 4, start_max: 6}", ["some windows contain the last step", "lower start_max"]),
        (TEACHER, "sampling.window={size: 1, start_min: 9, start_max: 9}", ["may contain only the last step"]),
        (TEACHER, "sampling.kernel=cps sampling.eta=1.5", ["eta between 0 and 1"]),
        (TEACHER, "stage=pretrain", ["'pretrain' is not one of teacher, coldstart"]),
        (COLDSTART, "train.query.steps=2", ["a cold start learns pictures"]),
        (MERGE, "merge.weights=[1,2]", ["2 values for 3 adapters"]),
        (
            MERGE,
            "merge.weights=[1,-2,1] merge.normalize=true",
            ["sum to 0 and cannot be normalized", "merge.normalize"],
        ),
        (DISTILL, "sampling.eta=0 opd.estimator=score", ["score needs a stochastic kernel"]),
        (DISTILL, "sampling.steps=1 opd.estimator=score", ["score needs a step that draws noise"]),
        (DISTILL, "opd.schedule=fused", ["train.updates is 2: set it to 1, or opd.schedule to replay"]),
        (DISTILL, "opd.schedule=fused opd.estimator=score train.updates=1", ["needs opd.estimator pathwise"]),
        (DISTILL, "opd.log_rewards_every=1", ["opd.log_rewards_every has no rewards to log"]),
        (DISTILL, "anchor.every=2 anchor.probability=0.5", ["leave one of them at 1"]),
    ],
)
def test_mistakes_are_one_line_that_names_cause_and_way_out(data, overrides, words):
    overrides = re.split(r" (?=\w+\.\w+=)", overrides)
    with pytest.raises(RecipeError) as caught:
        recipes.build(data, overrides=overrides)
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
        ("a: " + "9" * 5000, [r"bad\.yaml:1: .* is not a valid int"]),
        ("seed: " + "9" * 400, ["has more than 300 digits"]),
        ("a: .nan", [r"\.nan is not a value"]),
        ("a: !!binary aGk=", ["tag:yaml.org,2002:binary"]),
        ("? [a]\n: 1", [r"bad\.yaml:1: not YAML"]),
        ('a: "x\\0y"', ["has a NUL"]),
        ('a: "\\ud800"', ["half a surrogate pair"]),
        ("#" * 300_000, ["larger than 256 KiB"]),
        ("- a", ["a recipe is a mapping"]),
        ("seed: 1\nstage: caf\udce9", [r"bad\.yaml:2: not UTF-8 text"]),
        ("stage: [teacher]", [r"stage \"\['teacher'\]\" is not one of"]),
        ("stage: merge\nadapters: [a]\nmerge: {weights: [.inf]}", ["merge.weights.0", "finite"]),
        ("stage: merge\nadapters: [http://u:S3CRET@h/a]", [r"adapters\.0: holds a login or a key"]),
        ("stage: merge\nadapters: [a]\nmodel: {revision: hf_S3CRETS3CRETS3CRET}", [r"model\.revision: holds a"]),
        ("stage: merge\nadapters: [a]\nhf_S3CRETS3CRETS3CRET: 1", [r"unknown key 'hf_\*\*\*'"]),
    ],
)
def test_contents_that_are_no_recipe(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    for word in words:
        assert re.search(word, str(caught.value))
    assert "S3CRET" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_files_that_cannot_be_read(tmp_path):
    for path, words in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file")):
        with pytest.raises(RecipeError, match=words):
            recipes.load(path)
    for name in ("x" * 5000, "nul\0byte"):
        with pytest.raises(RecipeError, match="no recipe"):
            recipes.find(name)


def test_find_takes_files_and_shipped_names(monkeypatch, tmp_path):
    file = tmp_path / "mine.yaml"
    monkeypatch.setattr("flowopd_cli.recipe.reading.shipped", lambda: {"toy/distill": file})
    assert recipes.find(str(file)) == file
    assert recipes.find("toy/distill") == file
    with pytest.raises(RecipeError, match="did you mean 'toy/distill'"):
        recipes.find("toy/destill")


@pytest.mark.parametrize(
    "reward",
    [
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
    ],
)
def test_secrets_never_reach_a_recipe(reward):
    with pytest.raises(RecipeError, match=r"rewards\.0\..*which recipe\.yaml would store; use an environment") as no:
        recipes.build({**TEACHER, "rewards": [reward]})
    assert "S3" not in str(no.value)
    assert "CRET" not in str(no.value)
    with pytest.raises(RecipeError, match=r"eval\.options: .*which recipe\.yaml would store"):
        recipes.build({"stage": "eval", "eval": {"options": {"deqa": {"a": reward["name"], **reward}}}})


def test_a_secret_on_the_command_line_is_not_repeated():
    for text in ("remote:http://u:S3CRET@h/?key=S3CRET", "remote:http://u:a,x=S3CRET@h"):
        with pytest.raises(RecipeError, match=r"--reward: the address of a worker holds a login") as caught:
            reward_spec(text)
        assert "S3CRET" not in str(caught.value)
    with pytest.raises(RewardError, match="reward 'remote:'") as unknown:
        registry.REWARDS.target("remote:u:S3CRET@h")
    assert "S3CRET" not in str(unknown.value)


def test_options_that_resemble_secrets_are_accepted():
    options = {"token_env": "MINE", "max_tokens": 5, "pad_token": "x", "key_env": "K", "weights": "facebook/x@abc"}
    options["url"] = "http://h:1/v1"
    recipe = recipes.build({**TEACHER, "rewards": [{"name": "remote:http://a:1,http://b:2/x", "options": options}]})
    assert recipe.rewards[0].options == options


@pytest.mark.parametrize(
    ("overrides", "fused"),
    [
        (["train.updates=1"], True),
        (["train.updates=2"], False),
        (["train.updates=1", "opd.schedule=replay"], False),
        (["train.updates=1", "opd.estimator=score"], False),
        (["train.updates=1", "sampling.window={size: 2}"], False),
        (["train.updates=1", "sampling.window={size: 2}", "opd.schedule=fused"], True),
        (["train.updates=1", "sampling.steps=1", "sampling.kernel=ode"], True),
    ],
)
def test_the_fused_schedule_is_the_default_where_it_is_possible(overrides, fused):
    assert recipes.build(DISTILL, overrides=overrides).fused is fused


FILE = """stage: teacher
prompts: [{{source: "toy:geneval"}}]
rewards: [{{name: geneval}}]
model:
  tf32: no
  cache_prompts: off
train:
  lr: 1e-4
  groups: 010
  {line}
"""


def test_the_traps_of_yaml_1_1_are_read_as_meant(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.format(line="gradient_checkpointing: yes"), encoding="utf-8")
    recipe = recipes.load(path, overrides=["train.weight_decay=1e-2", "train.updates=003", "model.shard=on"])
    assert (recipe.model.tf32, recipe.model.cache_prompts, recipe.model.shard) == (False, False, True)
    assert recipe.train.gradient_checkpointing is True
    assert (recipe.train.lr, recipe.train.groups) == (0.0001, 10)
    assert (recipe.train.weight_decay, recipe.train.updates) == (0.01, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("iterations: yes", "mine.yaml:10: train.iterations: Input should be a valid integer, not yes"),
        ("iterations: 1:30", "mine.yaml:10: train.iterations: Input should be a valid integer, not 1:30"),
        ("iterations: true", "mine.yaml:10: train.iterations: Input should be a number, not true"),
        ("max_grad_norm: on", "mine.yaml:10: train.max_grad_norm: Input should be a valid number, not on"),
        ("micro: -1e0", "mine.yaml:10: train.micro: Input should be greater than 0, not -1e0"),
        ("itertions: 3", "mine.yaml:10: unknown key 'train.itertions', did you mean 'iterations'?"),
        ("track: 010", "mine.yaml:10: train.track: no tracker '10'; known: none, tensorboard, wandb, mlflow, trackio"),
        ("keep_best: {}", "mine.yaml:10: train.keep_best.metric: Field required"),
        ("keep_best: {metric: 12e4}", "mine.yaml:10: train.keep_best.metric: Input should be a valid string, not 12e4"),
    ],
)
def test_an_error_names_file_line_and_value(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.format(line=line), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_an_error_of_an_override_names_the_override(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.format(line="iterations: 3"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^--set train\.iterations: Input .* integer, not yes$"):
        recipes.load(path, overrides=["train.iterations=yes"])
    with pytest.raises(RecipeError, match=r"^--set train: unknown key 'train\.itertions', did you mean 'iterations'"):
        recipes.load(path, overrides=["train={itertions: 3}"])


def test_an_error_of_a_flag_names_no_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.format(line="iterations: 3"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^seed: Input should be less than 9223372036854775808, not 9+$"):
        recipes.build({**recipes.read(path), "seed": 10**19 - 1}, where=str(path))


def test_numbers_in_lists_and_mappings_are_no_booleans():
    with pytest.raises(RecipeError, match=r"merge\.weights: Input should be a number"):
        recipes.build(MERGE, overrides=["merge.weights=[1, true, 0]"])
    with pytest.raises(RecipeError, match=r"eval\.fail_under"):
        recipes.build({"stage": "eval"}, overrides=["eval.fail_under={ocr: true}"])


def test_a_mixed_route_and_the_earlier_name_of_the_query_are_read():
    route = [{"ref": "a", "weight": 2}, {"ref": "b", "weight": "meta:share", "guidance": 1.0}]
    built = recipes.build(
        {**DISTILL, "routing": {"ocr": route, "geneval": {"ref": "c"}}, "train": {"steps_per_rollout": 3}}
    )
    assert {key: (spec.ref, spec.share) for key, spec in built.teachers.items()} == {
        "ocr.0": ("a", 2.0),
        "ocr.1": ("b", "share"),
        "geneval": ("c", 1.0),
    }
    assert built.train.query.steps == 3
    assert recipes.build(built.model_dump(mode="json")) == built


def test_a_base_is_the_same_with_and_without_a_slash_at_its_end():
    routing = {task: {"ref": "base", "base": base} for task, base in (("geneval", "big"), ("ocr", "big/"))}
    tree = {
        "stage": "distill",
        "prompts": [{"source": "toy:all"}],
        "model": {"pretrained": "small/"},
        "routing": routing,
    }
    recipe = recipes.build(tree)
    assert recipe.model.pretrained == "small"
    assert len({teacher.own_model(recipe.model) for teacher in recipe.routing.values()}) == 1
