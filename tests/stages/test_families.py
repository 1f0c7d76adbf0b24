"""The six commands on a tiny base of each family with recipes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.families import FLUX, FLUX2_KLEIN, LUMINA2, QWEN_IMAGE, SANA, Z_IMAGE
from support.tiny import TEXTS

import flowopd_cli
from flowopd_cli.models.files.families import family
from flowopd_cli.runs.run import RunDir

PACKAGE = Path(flowopd_cli.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
SMALL = {
    "model.resolution": 32,
    "model.max_sequence_length": 48,
    "model.dtype": "float32",
    "model.device": "cpu",
    "adapter.rank": 4,
    "adapter.alpha": 4,
    "sampling.steps": 3,
    "train.iterations": 2,
    "train.groups": 2,
    "train.group_size": 2,
    "train.checkpoint_every": 1,
    "train.sample_every": 2,
    "train.ema_every": 1,
}


def flags(**more):
    """``--set`` for the small settings and ``more`` of them, whose dots are double underscores."""
    named = {**SMALL, **{key.replace("__", "."): value for key, value in more.items()}}
    return [word for key, value in named.items() for word in ("--set", f"{key}={value}")]


# By family: the folder of its recipes, its teacher there, and a part of the names of its adapted layers.
RECIPES = {
    "flux": ("flux-dev", "teacher-pickscore", ".single_transformer_blocks."),
    "flux2-klein": ("flux2-klein", "teacher-pickscore-nft", ".attn.to_qkv_mlp_proj."),
    "qwen-image": ("qwen-image", "teacher-pickscore-nft", ".add_k_proj."),
    "sana": ("sana", "teacher-pickscore-nft", ".attn2."),
    "lumina2": ("lumina2", "teacher-pickscore-nft", ".noise_refiner."),
    "z-image": ("z-image", "teacher-pickscore-nft", ".noise_refiner."),
}


SLOW = [
    pytest.param(tiny, id=tiny.family, marks=pytest.mark.slow)
    for tiny in (Z_IMAGE, SANA, LUMINA2, FLUX2_KLEIN, QWEN_IMAGE)
]


@pytest.fixture(scope="module", params=[pytest.param(FLUX, id="flux"), *SLOW])
def tiny(request):
    return request.param


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """A pipeline of the family in a folder."""
    folder = tmp_path_factory.mktemp("bases") / tiny.family
    tiny.assemble(0).save_pretrained(folder)
    return folder


@pytest.fixture
def call(flowopd):
    """Run a command that has to succeed; returns its result."""

    def run(*argv):
        code, out, err = flowopd(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def trained(path):
    """A run that trained for two iterations and moved its adapter."""
    run = RunDir.open(path)
    assert run.manifest().status == "done"
    assert [row["iteration"] for row in run.rows()] == [1, 2]
    weights = load_file(run.adapter_dir / "adapter_model.safetensors")
    assert any(RECIPES[run.recipe().model.family][2] in name for name in weights)
    assert any(float(value.abs().max()) > 0 for name, value in weights.items() if "lora_B" in name)
    return run


def test_the_six_commands(call, tiny, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes, teacher, _ = RECIPES[tiny.family]
    prompts = "prompts=[{source: toy:geneval, limit: 4}, {source: toy:ocr, limit: 4}]"
    reward = ("--set", "rewards=[{name: jpeg_compressibility}]")
    on = ("--base", base)
    for task in ("geneval", "ocr"):
        source = ("--set", f"prompts=[{{source: toy:{task}, limit: 4}}]")
        recipe = ("--recipe", f"{recipes}/{teacher}", *on, *reward, *source)
        call("teacher", *recipe, "--out", f"t-{task}", *flags(grpo__beta=0.1, seed=len(task)))
        trained(f"t-{task}")
    teachers = ("--teacher", "geneval=t-geneval,guidance=2.0", "--teacher", "ocr=t-ocr")
    cold = flags(sft__samples=4, sft__batch=4, sampling__guidance=3.5)
    targets = ("--set", f"adapter.targets=[{','.join(RunDir.open('t-ocr').recipe().adapter.targets)}]")
    call("coldstart", *on, *teachers, *targets, "--set", prompts, "--out", "c", *cold)
    assert trained("c").recipe().model.family == tiny.family

    merged = call("merge", "t-geneval", "t-ocr", "--out", "init", "--set", "merge.rank=4")
    assert merged["metrics"]["rank"] == 4
    assert RunDir.open("init").manifest().base == RunDir.open("c").manifest().base

    roles = (*teachers, "--init", "init", "--anchor", "c")
    small = flags(train__gradient_checkpointing="true")
    call("distill", "--recipe", f"{recipes}/distill", *on, *roles, "--set", prompts, "--out", "s", *small)
    assert {"kl", "kl_anchor"} <= set(trained("s").rows()[0])
    replayed = flags(opd__schedule="replay", train__sample_every=0, train__checkpoint_every=2)
    call("distill", "--recipe", f"{recipes}/distill", *on, *roles, "--set", prompts, "--out", "r", *replayed)
    one, two = (load_file(RunDir.open(path).adapter_dir / "adapter_model.safetensors") for path in "sr")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5

    counted = ("--set", "eval.limit=2", "--set", "eval.images=1", "--set", "eval.steps=2", "--set", "eval.guidance=3.5")
    scored = call("eval", "--suite", "toy-quality", "--adapter", "s", *counted, "--out", "e")
    assert scored["suites"]["quality"]["n"] == 2
    sizes = ("--set", "model.resolution=32", "--set", "model.max_sequence_length=48")
    bare = call("eval", "--suite", "toy-quality", "--base", base, *counted, *sizes, "--out", "eb")
    with monkeypatch.context() as hub:  # the same folder, under a name that no family knows
        hub.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(base))
        fetched = call("eval", "--suite", "toy-quality", "--base", "someone/tuned", *counted, *sizes, "--out", "eh")
    assert fetched["suites"] == bare["suites"]

    pushed = call("push", "s", "--dry-run", "--out", "p", "--set", "push.verify_guidance=3.5")
    assert pushed["metrics"]["difference"] <= 2 / 255
    folder = RunDir.open("p").hub_dir
    card = (folder / "README.md").read_text()
    assert "DiffusionPipeline.from_pretrained" in card
    guidance = family(tiny.family).pipeline_guidance(RunDir.open("s").recipe().sampling.guidance)
    for name, value in guidance.items():
        assert f"{name}={json.dumps(value) if isinstance(value, str) else f'{value:g}'}" in card
    pipeline = tiny.plain(base)
    options = {**tiny.call(1.0), "height": 32, "width": 32, "max_sequence_length": 48, "num_inference_steps": 2}
    before = pipeline(prompt=TEXTS[0], generator=torch.manual_seed(0), **options).images
    pipeline.load_lora_weights(folder)
    after = pipeline(prompt=TEXTS[0], generator=torch.manual_seed(0), **options).images
    assert float((before - after).abs().max()) > 0


@pytest.mark.parametrize("algorithm", ["nft", "awm"])
def test_teachers_by_the_forward_process(call, tiny, base, tmp_path, algorithm):
    """Two optimizer steps; FLUX has guidance as an input of its network."""
    recipe = f"{RECIPES[tiny.family][0]}/teacher-pickscore-nft"
    data = ("--set", "rewards=[{name: jpeg_compressibility}]", "--set", "prompts=[{source: toy:geneval, limit: 4}]")
    small = flags(algorithm=algorithm, nft__levels=2, awm__levels=2)
    call("teacher", "--recipe", recipe, "--base", base, *data, *small, "--out", tmp_path / "t")
    row = trained(tmp_path / "t").rows()[1]
    assert (row["step"], row["skipped"]) == (2, 0)
    assert row["distance_slow"] > 0


@pytest.mark.slow
def test_two_processes_and_shards_train_what_one_process_trains(tiny, base, tmp_path):
    """Three groups, so that one process has fewer forwards and fills them up."""
    folder, teacher, _ = RECIPES[tiny.family]
    recipe = ["teacher", "--recipe", f"{folder}/{teacher}", "--base", str(base)]
    data = ["--set", "rewards=[{name: jpeg_compressibility}]", "--set", "prompts=[{source: toy:geneval, limit: 4}]"]
    common = [*recipe, *data, *flags(train__groups=3, train__sample_every=0, grpo__beta=0.1)]
    ways = {"one": [], "two": ["--processes", "2"], "pieces": ["--processes", "2", "--set", "model.shard=true"]}
    weights = {}
    for name, more in ways.items():
        argv = [sys.executable, "-m", "flowopd_cli", *common, "--out", str(tmp_path / name), *more]
        done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        weights[name] = load_file(trained(tmp_path / name).adapter_dir / "adapter_model.safetensors")
    for name in ("two", "pieces"):
        for key, value in weights["one"].items():
            torch.testing.assert_close(weights[name][key], value, atol=1e-6, rtol=1e-3)  # float32 sums in another order
