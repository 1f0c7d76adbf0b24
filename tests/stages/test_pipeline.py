"""The six stages in a chain on the toy base, as small as they get: every file that a user would look for is there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowopd_cli
from flowopd_cli import recipe as recipes
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan.resolve import Plan, resolve
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError, PromptError, RewardError, RoutingError
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.manifest import Base
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

TOY = Path(flowopd_cli.__file__).parent / "toy" / "weights"
SMALL = ("train.iterations=2", "train.groups=2", "train.group_size=2", "train.checkpoint_every=1", "sampling.steps=4")
LORA = ("adapter.rank=4", "adapter.targets=[attn.to_q, attn.to_v]")
LOGGED = ("opd.log_rewards_every=1", "rewards=[{name: toy-ocr, task: ocr}]")
TASKS = ("geneval", "ocr")
PROMPTS = [{"source": f"toy:{task}"} for task in TASKS]
EVAL = ("eval.limit=4", "eval.images=2", "eval.steps=2", "eval.split=validation")


def perform(path, name, *overrides, resume=False, **values):
    tree = recipes.read(recipes.find(name))
    for field, value in values.items():
        recipes.assign(tree, field.replace("__", "."), value)
    built = recipes.build(tree, overrides=overrides)
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    return run, run_stage(Plan.of(built), run, Silent(), resume=resume)


def weights(run):
    return load_file(run.adapter_dir / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two teachers, their merge, a cold start, a student and its evaluation."""
    root = tmp_path_factory.mktemp("world")
    runs = {}
    for task in ("geneval", "ocr", "quality"):
        runs[task], _ = perform(root / f"t-{task}", f"toy/teacher-{task}", *SMALL, *LORA)
    teachers = {task: {"ref": str(runs[task].path)} for task in TASKS}
    runs["coldstart"], _ = perform(
        root / "c", "toy/coldstart", *SMALL, *LORA, "sft.samples=4", "sft.batch=4", prompts=PROMPTS, teachers=teachers
    )
    refs = [str(runs[task].path) for task in ("geneval", "ocr", "quality")]
    runs["merge"], _ = perform(root / "m", "toy/merge", "merge.rank=4", adapters=refs)
    runs["student"], _ = perform(root / "s", "toy/distill", *SMALL, *LORA, *LOGGED, **lineage(runs))
    runs["eval"], _ = perform(root / "e", "toy/eval", *EVAL, adapter=str(runs["student"].path))
    return runs


def lineage(runs):
    return {
        "adapter__init": str(runs["merge"].path),
        "prompts": PROMPTS,
        "routing": {task: {"ref": str(runs[task].path)} for task in TASKS},
        "anchor__ref": str(runs["quality"].path),
    }


@pytest.mark.parametrize("name", ["geneval", "ocr", "quality", "coldstart", "student"])
def test_a_training_run_has_everything(world, name):
    run = world[name]
    assert run.manifest().status == "done"
    assert [row["iteration"] for row in run.rows()] == [1, 2]
    assert run.checkpoints.newest()[0] == 2
    assert run.image_file("000002").is_file()
    assert weights(run)


def test_teachers_log_reward_and_students_log_divergence(world):
    assert {"reward", "reward_std", "flat_groups", "policy_loss"} <= set(world["ocr"].rows()[0])
    row = world["student"].rows()[0]
    assert {"kl", "kl_anchor", "reward", "grad_norm", *(f"kl_step/{step}" for step in range(3))} <= set(row)
    assert {name for name in row if name.startswith("kl/")} <= {"kl/geneval", "kl/ocr"}
    assert row["kl"] == pytest.approx(sum(row[f"kl_step/{step}"] for step in range(3)) / 3, rel=1e-4)


def test_the_manifest_names_every_parent(world):
    manifest = world["student"].manifest()
    assert [parent.role for parent in manifest.parents] == ["init", "teacher_geneval", "teacher_ocr", "anchor"]
    assert all(parent.sha256 for parent in manifest.parents)
    assert manifest.base.sha256 == world["ocr"].manifest().base.sha256


def test_eval_reports_mean_error_and_protocol(world):
    result = json.loads(world["eval"].eval_file("quality").read_text())
    assert 0 <= result["mean"] <= 1
    assert result["n"] == 8
    assert result["prompts"] == 4
    assert result["protocol"]["split"] == "validation"
    assert world["eval"].image_file("eval").is_file()


def test_a_student_without_anchor_and_by_score(world, tmp_path):
    changes = ("anchor.beta=0", "opd.estimator=score", "train.iterations=1", "train.sample_every=0")
    run, _ = perform(tmp_path / "s", "toy/distill", *SMALL, *LORA, *changes, **lineage(world))
    row = run.rows()[0]
    assert "kl_anchor" not in row
    assert "clip_fraction" in row
    assert "anchor" not in [parent.role for parent in run.manifest().parents]


@pytest.mark.parametrize("kernel", ["ode", "cps"])
def test_a_student_with_other_kernels(world, tmp_path, kernel):
    changes = (f"sampling.kernel={kernel}", "train.iterations=1", "train.sample_every=0")
    run, _ = perform(tmp_path / "s", "toy/distill", *SMALL, *LORA, *changes, **lineage(world))
    assert run.rows()[0]["kl"] >= 0


def test_a_half_precision_run_on_a_local_base_is_pushed_without_local_paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("local-folder")
    base = str(shutil.copytree(TOY, root / "my-base"))
    trained, _ = perform(
        root / "t", "toy/teacher-quality", *SMALL, *LORA, "model.dtype=bfloat16", model__pretrained=base
    )
    scored, _ = perform(
        root / "e", "toy/eval", *EVAL, "eval.suites=[toy-quality]", adapter=str(trained.path), model__pretrained=base
    )
    push = {"stage": "push", "run": str(trained.path), "push": {"dry_run": True, "evaluations": [str(scored.path)]}}
    run = RunDir.create(root / "p", "push")
    result = run_stage(Plan.of(recipes.build(push)), run, Silent())
    assert result["uploaded"] is False
    assert result["metrics"]["difference"] <= 2 / 255
    texts = {
        path.name: path.read_bytes().decode("utf-8", "replace") for path in run.hub_dir.rglob("*") if path.is_file()
    }
    assert {"adapter_config.json", "README.md", "recipe.yaml"} <= texts.keys()
    assert any('"model": "my-base"' in text for name, text in texts.items() if name.endswith("quality.json"))
    assert [name for name, text in texts.items() if str(root) in text] == []
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "my-base"
    assert recipes.load(run.hub_dir / "recipe.yaml").model.pretrained == "my-base"
    assert "A LoRA for `my-base`" in texts["README.md"]


def test_a_push_without_enough_memory_suggests_the_cpu(world, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flowopd_cli.stages.publishing.verify.plain_pipeline", full)
    built = recipes.build({"stage": "push", "run": str(world["student"].path), "push": {"dry_run": True}})
    with pytest.raises(ArtifactError, match=r"--set model\.device=cpu"):
        run_stage(Plan.of(built), RunDir.create(tmp_path / "p", "push"), Silent())


def test_push_refuses_a_difference_above_the_tolerance(world, tmp_path):
    push = {"dry_run": True, "tolerance": 1e-12}
    built = recipes.build({"stage": "push", "run": str(world["student"].path), "push": push})
    with pytest.raises(ArtifactError, match="another picture"):
        run_stage(Plan.of(built), RunDir.create(tmp_path / "p", "push"), Silent())


def test_prompts_and_rewards_are_validated_before_sampling(tmp_path):
    (tmp_path / "p.txt").write_text("no quotes here\n")
    with pytest.raises(PromptError, match="double quotes"):
        perform(tmp_path / "t", "toy/teacher-ocr", *SMALL, prompts=[{"source": str(tmp_path / "p.txt"), "task": "ocr"}])
    rewards = [{"name": "toy-quality", "options": {"wrong": 1}}]
    with pytest.raises(RewardError, match="reward toy-quality: "):
        perform(tmp_path / "u", "toy/teacher-quality", *SMALL, rewards=rewards)


def test_prompts_without_reward_or_teacher_are_refused_before_the_base_is_loaded(tmp_path):
    (tmp_path / "o.jsonl").write_text(json.dumps({"prompt": 'a sign that says "BC"', "task": "other"}))
    rewards, others = [{"name": "toy-ocr", "task": "ocr"}], [{"source": str(tmp_path / "o.jsonl"), "task": "ocr"}]
    with pytest.raises(RewardError, match="task 'other' have no reward"):
        perform(tmp_path / "t", "toy/teacher-ocr", *SMALL, prompts=others, rewards=rewards)
    assert RunDir.open(tmp_path / "t").manifest().base is None
    with pytest.raises(RewardError, match="task 'geneval' have no reward"):
        perform(tmp_path / "c", "toy/coldstart", *SMALL, rewards=rewards)
    with pytest.raises(RoutingError, match="task 'other' have no teacher"):
        perform(tmp_path / "s", "toy/distill", *SMALL, prompts=others)


def on_the_hub(monkeypatch, folder, world, **changes):
    """A copy of an adapter that ``hub:me/other`` resolves to, with a changed configuration."""
    shutil.copytree(world["ocr"].adapter_dir, folder, ignore=shutil.ignore_patterns("checksums.json"))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **rest: str(folder))


def test_a_fetched_adapter_of_another_base_is_refused(world, monkeypatch, tmp_path):
    on_the_hub(monkeypatch, tmp_path / "hub", world, base_sha256="c" * 64)
    ours = str(world["geneval"].path)
    with pytest.raises(ArtifactError, match="hub:me/other: was trained on another base"):
        perform(tmp_path / "s", "toy/distill", *SMALL, *LORA, **lineage(world) | {"routing__ocr__ref": "hub:me/other"})
    with pytest.raises(ArtifactError, match="different bases cannot be merged"):
        perform(tmp_path / "m", "toy/merge", adapters=[ours, "hub:me/other"])
    with pytest.raises(ArtifactError, match="trained on another base than toy"):
        perform(tmp_path / "n", "toy/merge", adapters=["hub:me/other"])


def test_a_merge_is_of_the_base_that_its_adapters_name(world, monkeypatch, tmp_path):
    name = "stabilityai/stable-diffusion-3.5-medium"
    on_the_hub(monkeypatch, tmp_path / "a", world, base_model_name_or_path=name)
    common = Common(out=tmp_path / "m")
    plan = resolve("merge", common, {"adapters": [str(tmp_path / "a")]}, refs=[str(tmp_path / "a")])
    run = RunDir.create(tmp_path / "m", "merge")
    run_stage(plan, run, Silent())
    assert run.manifest().base == Base(ref=name, sha256=None)
    assert AdapterRef.parse(str(run.adapter_dir)).resolve().base == Base(ref=name, sha256=None)
    assert json.loads((run.adapter_dir / "adapter_config.json").read_text())["base_model_name_or_path"] == name
