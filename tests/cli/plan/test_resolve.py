"""From flags to a recipe: which base adapters bring along."""

import json

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.resolve import resolve
from flowopd_cli.cli.stage import continuation
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.registry import FAMILIES
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir

SD35 = "stabilityai/stable-diffusion-3.5-medium"


def folder(path, **config):
    """An adapter folder in PEFT form, as far as its configuration goes."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def run(path, base, resolution):
    """A run of one base with an adapter in it."""
    made = RunDir.create(path, "teacher")
    data = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
    made.start(recipes.build({**data, "model": {"pretrained": base, "resolution": resolution}}))
    folder(made.adapter_dir)
    made.declare(Inputs(base=Base(ref=base, sha256="b" * 64)))
    made.finish("done")
    return str(path)


def model_of(*refs, **options):
    return resolve("merge", Common(**options), {"adapters": list(refs)}, refs=list(refs)).recipe.model


def test_folders_bring_the_base_that_their_configuration_names(tmp_path):
    one, two = (folder(tmp_path / name, base_model_name_or_path=SD35) for name in "ab")
    found = model_of(one, two)
    assert (found.pretrained, found.resolution) == (SD35, 512)
    toy = folder(tmp_path / "toy", base_model_name_or_path="toy")
    assert model_of(toy).model_dump() == recipes.load(recipes.find("toy/merge")).model.model_dump()


def test_runs_bring_their_whole_model_and_so_do_the_adapters_in_them(tmp_path):
    ours = run(tmp_path / "r", SD35, 768)
    for reference in (ours, f"{ours}/adapter"):
        assert (model_of(reference).pretrained, model_of(reference).resolution) == (SD35, 768)


def test_adapters_that_disagree_or_say_nothing_want_a_base(tmp_path):
    named = folder(tmp_path / "a", base_model_name_or_path=SD35)
    toy, silent = run(tmp_path / "r", "toy", 32), folder(tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"adapters of different bases \(.*a of stabilityai/.*, .*r of toy\)"):
        model_of(named, toy)
    with pytest.raises(ArtifactError, match=r"s: does not record the base it was trained on; name it with --base"):
        model_of(toy, silent)
    with pytest.raises(ArtifactError, match=r"hub:me/m: does not record the base"):
        model_of("hub:me/m")
    assert model_of(toy, "hub:me/m").pretrained == "toy"
    assert model_of(named, silent, base="toy").pretrained == "toy"


def test_what_a_push_wrote_is_an_adapter_folder_and_no_run(tmp_path):
    pushed = RunDir.create(tmp_path / "p", "push")
    pushed.start(recipes.build({"stage": "push", "run": "r"}))
    assert model_of(folder(pushed.hub_dir, base_model_name_or_path="toy")).pretrained == "toy"


def test_the_init_and_the_anchor_bring_their_base_too(tmp_path):
    one = folder(tmp_path / "a", base_model_name_or_path=SD35)
    values = {"adapter.init": one, "routing": {"ocr": {"ref": "base"}}, "prompts": [{"source": "toy:ocr"}]}
    assert resolve("distill", Common(), values, refs=[one, "base"]).recipe.model.pretrained == SD35


def code_recipe(path, name):
    data = {"stage": "teacher", "model": {"pretrained": "toy"}, "prompts": [{"source": "toy:ocr"}]}
    path.write_text(recipes.dump(recipes.build({**data, "rewards": [{"name": "toy-ocr"}, {"name": name}]})))
    return str(path)


@pytest.mark.parametrize("name", ["my_rewards:sharp", "os:system", "torch.hub:load", "flowopd_cli.system.files:remove"])
def test_code_that_a_recipe_file_names_needs_consent(tmp_path, name):
    file = code_recipe(tmp_path / "r.yaml", name)
    with pytest.raises(RecipeError) as refused:
        resolve("teacher", Common(recipe=file), {})
    assert str(refused.value) == f"{file}: rewards.1.name: {name} is code; a recipe may only run it with --allow-code"
    assert resolve("teacher", Common(recipe=file, allow_code=True), {}).recipe.rewards[1].name == name


def test_code_that_the_command_line_names_is_consented_to(tmp_path):
    file, name = code_recipe(tmp_path / "r.yaml", "a:b"), "my_rewards:sharp"
    assert resolve("teacher", Common(recipe=file), {"rewards": [{"name": name}]}).recipe.rewards[0].name == name
    for override in (f"rewards.1.name={name}", f"rewards=[{{name: '{name}'}}]"):
        resolve("teacher", Common(recipe=file, overrides=[override]), {})
    with pytest.raises(RecipeError, match=r"rewards\.1\.name: a:b is code"):
        resolve("teacher", Common(recipe=file, overrides=["seed=1"]), {})


def test_options_of_suites_name_code_too(tmp_path):
    file = tmp_path / "r.yaml"
    data = {"stage": "eval", "model": {"pretrained": "toy"}}
    options = {"average": {"deqa": {"reward": "my_rewards:sharp"}}}
    file.write_text(recipes.dump(recipes.build({**data, "eval": {"suites": ["average"], "options": options}})))
    with pytest.raises(RecipeError, match=r"eval\.options, reward: my_rewards:sharp is code"):
        resolve("eval", Common(recipe=str(file)), {})


def test_a_resumed_run_needs_consent_again(tmp_path):
    made = RunDir.create(tmp_path / "r", "teacher")
    made.start(recipes.load(code_recipe(tmp_path / "r.yaml", "my_rewards:sharp")))
    made.finish("interrupted")
    with pytest.raises(RecipeError, match="--allow-code"):
        resolve("teacher", Common(resume=made.path), {})
    plan = resolve("teacher", Common(resume=made.path, allow_code=True), {})
    assert continuation(plan.recipe, made.path).endswith(" --allow-code")


@pytest.mark.parametrize("name", ["teacher-geneval-grpo", "teacher-ocr"])
def test_settings_of_a_shipped_recipe_that_a_flag_leaves_without_effect_get_no_remark(name):
    values = {"algorithm": "awm", "sampling.kernel": "ode"}
    common = Common(recipe=f"toy/{name}", overrides=["grpo.clip=0.3"])
    plan = resolve("teacher", common, values)
    unused = [remark for remark in check(plan.recipe, dry_run=True, start=plan.start) if "no effect" in remark]
    assert unused == ["grpo.clip: has no effect, because algorithm is awm"]


@pytest.mark.parametrize(
    ("rewards", "algorithm", "name"),
    [
        (["geneval"], None, "teacher-geneval"),
        (["ocr"], "grpo", "teacher-ocr-grpo"),
        (["ocr", "quality"], "grpo", "grpo-mix"),
    ],
)
def test_the_toy_has_a_recipe_for_each_reward_and_one_more_for_grpo(rewards, algorithm, name):
    values = {"rewards": [{"name": reward} for reward in rewards], "prompts": [], "algorithm": algorithm}
    recipe = resolve("teacher", Common(), {key: value for key, value in values.items() if value}).recipe
    shipped = recipes.load(recipes.find(f"toy/{name}"))
    assert (recipe.algorithm, recipe.train) == (shipped.algorithm, shipped.train)


@pytest.mark.parametrize("family", FAMILIES.names())
def test_an_unknown_repository_tells_its_family_unless_nothing_is_run(tmp_path, monkeypatch, family):
    asked, cached = [], False

    def download(repo, **options):
        asked.append((repo, options))
        if options["local_files_only"] and not cached:
            raise FileNotFoundError
        return str(tmp_path)

    (tmp_path / "transformer").mkdir()
    config = {"_class_name": FAMILIES.load(family).transformer}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = resolve("eval", Common(base="someone/tuned"), {}).recipe.model
    assert (model.family, model.pretrained) == (family, "someone/tuned")
    assert {repo for repo, _ in asked} == {"someone/tuned"}
    assert all(options["allow_patterns"] == ["transformer/config.json"] for _, options in asked)
    asked.clear()
    protocol = {"eval.steps": 4, "eval.guidance": 1.0}
    dry = resolve("eval", Common(base="someone/tuned", dry_run=True), protocol)
    assert dry.recipe.model.family == "sd3"
    assert dry.remarks == (
        "someone/tuned: its family is not known before it is fetched; sd3 is assumed: name it with --set "
        "model.family=NAME",
    )
    assert not resolve(
        "eval", Common(base="someone/tuned", dry_run=True, overrides=[f"model.family={family}"]), protocol
    ).remarks
    cached = True
    dry = resolve("eval", Common(base="someone/tuned", dry_run=True), protocol)
    assert (dry.recipe.model.family, dry.remarks) == (family, ())
    assert all(options["local_files_only"] for _, options in asked)
    asked.clear()
    resolve("eval", Common(base="Qwen/Qwen-Image"), {})
    assert asked == []


def test_default_steps_and_guidance_of_another_family_are_noted():
    base = "black-forest-labs/FLUX.1-schnell"
    (remark,) = resolve("eval", Common(base=base), {}).remarks
    assert remark.startswith("eval.steps 40 and eval.guidance 4.5 suit Stable Diffusion 3.5, not every flux model: set")
    (remark,) = resolve("eval", Common(base=base, overrides=["eval.steps=4"]), {}).remarks
    assert remark.startswith("eval.guidance 4.5 suit")
    assert not resolve("eval", Common(base=base, overrides=["eval.steps=4"]), {"eval.guidance": (1.0, 2.0)}).remarks
    assert not resolve("eval", Common(base=base), {"eval.pictures": "pictures"}).remarks
    assert not resolve("eval", Common(base="stabilityai/stable-diffusion-3.5-medium"), {}).remarks
