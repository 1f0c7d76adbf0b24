"""``flowopd push`` in processes against a local server in place of the Hub."""

import json
import os
from unittest.mock import patch

import pytest
from huggingface_hub import ModelCard
from support.forks import server
from support.hub_server import TOKEN, environment, serving
from support.toyruns import SMALL, changes, teacher

from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import files_below

EVAL = changes("eval.limit=2", "eval.images=1", "eval.steps=2", "eval.split=validation")
FAST = changes("push.verify_steps=2")
CONFIG = "adapter_config.json"
# Runs the code of a card, then our sampler from the same noise.
CARD_LINES = """
import numpy, torch
from pathlib import Path
blocks = [part.split("```")[0] for part in Path({card!r}).read_text().split("```python\\n")[1:]]
names = {{}}
torch.manual_seed(7)
exec(blocks[0], names)
plain = numpy.asarray(names["image"]).astype(int)
names["pipeline"].unload_lora_weights()
call = next(line for line in blocks[0].splitlines() if line.startswith("image ="))
torch.manual_seed(7)
exec(call, names)
bare = numpy.asarray(names["image"]).astype(int)
exec(blocks[1], names)
torch.manual_seed(7)
exec(call, names)
peft = numpy.asarray(names["image"]).astype(int)

from flowopd_cli.core.sampler import SeededNoise
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.stages.training import model as _model
from flowopd_cli.stages.drawing import ode_sampler, to_bytes
model = _model.load_model(ModelSpec(pretrained="toy", resolution=None, max_sequence_length=1, dtype="float32"), ())
model.adapters.load("policy", AdapterRef.parse({ref!r}).resolve().path)
cond, noise = model.encode(["a prompt"]), SeededNoise((0,), model.latent_shape)
torch.manual_seed(7)
start = torch.randn(1, *model.latent_shape)
with model.adapters.use("policy"), torch.no_grad():
    final = ode_sampler(model, 2, 1.0).rollout(model.velocity, start, cond, noise).final
    ours = to_bytes(model.decode(final))[0].permute(1, 2, 0).numpy().astype(int)
print([int(abs(other - ours).max()) for other in (plain, peft, bare)])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hub():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def forks(hub, home):
    """A server of commands for which the stand-in is the Hub."""
    with patch.dict(os.environ, environment(hub, home / "hf"), clear=True), server(home) as running:
        yield running


@pytest.fixture(scope="module")
def trained(forks, home):
    """A small teacher, and an evaluation of it."""
    assert forks.run(*teacher("quality"), "--out", home / "t").code == 0
    scored = forks.run("eval", "--suite", "ocr,quality", "--adapter", home / "t", *EVAL, "--out", home / "e")
    assert scored.code == 0, scored.err
    return home / "t"


@pytest.fixture(scope="module")
def pushed(forks, home, hub, trained):
    """The first push, private: its output, its result and its run."""
    argv = ("--repo", "me/it", "--private", "--eval", home / "e", "--out", home / "p", "--json")
    ended = forks.run("push", trained, *argv, *FAST)
    assert ended.code == 0, ended.err
    return ended, json.loads(ended.out), RunDir.open(home / "p", writes=False)


def test_the_checked_folder_is_uploaded(pushed, hub):
    ended, result, run = pushed
    own = {name: path.read_bytes() for name, path in files_below(run.hub_dir).items()}
    assert own.items() <= hub.files("me/it", result["commit"]).items()
    assert {"pytorch_lora_weights.safetensors", "adapter_model.safetensors", "recipe.yaml", "eval/ocr.json"} <= set(own)
    assert hub.repos["me/it"].private
    assert (result["repo"], result["uploaded"], result["changed"]) == ("me/it", True, True)
    assert set(result["metrics"]) == {"difference", "difference_peft", "hub_difference", "hub_difference_peft"}
    assert max(result["metrics"].values()) <= 2 / 255
    assert "read back from the Hub, every file is the same" in ended.err
    assert TOKEN not in ended.err + ended.out
    assert not any(TOKEN.encode() in path.read_bytes() for path in files_below(run.path).values())


def test_the_card_has_the_figures_and_pictures_of_the_evaluation(pushed, hub):
    files = hub.files("me/it")
    data, scored = ModelCard(files["README.md"].decode()).data, json.loads(files["eval/quality.json"])
    assert {result.metric_type for result in data.eval_results} == {"ocr", "quality"}
    assert round(scored["mean"], 4) in {result.metric_value for result in data.eval_results}
    assert [entry["text"] for entry in data.widget] == json.loads(files["eval/prompts.json"])
    assert all(entry["output"]["url"] in files for entry in data.widget)


def test_the_code_of_the_card_draws_our_picture(pushed, forks):
    """Loaded from the Hub by name: by diffusers, by PEFT and by ourselves, from one noise. Without it, another one."""
    _, result, run = pushed
    script = CARD_LINES.format(card=str(run.hub_dir / "README.md"), ref=f"hub:me/it@{result['commit']}")
    ended = forks.run("--version", before=script)
    assert ended.code == 0, ended.err
    plain, peft, bare = json.loads(ended.out.splitlines()[0])
    assert max(plain, peft) <= 2 < bare


def test_the_same_push_again_uploads_nothing(pushed, forks, home, hub, trained):
    commits = len(hub.repos["me/it"].messages)
    argv = ("--repo", "me/it", "--public", "--eval", home / "e", "--out", home / "p2")
    ended = forks.run("push", trained, *argv, *FAST)
    assert ended.code == 0, ended.err
    assert f"me/it@{pushed[1]['commit']} has these very files: nothing was uploaded" in ended.err
    assert len(hub.repos["me/it"].messages) == commits
    assert "me/it was private, and no longer is" in ended.err
    assert not hub.repos["me/it"].private


def test_a_push_to_a_branch_keeps_other_branches_and_files(pushed, forks, home, hub, trained):
    there = hub.repos["me/it"]
    mine = {"NOTES.md": b"mine", "evaluation.md": b"mine", "eval/old.json": b"{}"}
    there.commit("main", hub.files("me/it") | mine, "by hand")
    before = dict(hub.files("me/it"))
    argv = ("--revision", "try/one", "--message", "A trial", "--private", "--out", home / "p3", "--quiet")
    ended = forks.run("push", trained, "--repo", "me/it", *argv, *FAST)
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert hub.files("me/it") == before
    files = hub.files("me/it", "try/one")
    assert {"NOTES.md", "evaluation.md"} <= set(files)
    assert not [name for name in files if name.startswith(("eval/", "samples/"))]
    assert there.messages[-1] == "A trial"
    card = files["README.md"].decode()
    assert 'load_lora_weights("me/it", revision="try/one")' in card
    assert "No evaluation came with it" in card
    made_private = hub.requests.index(("PUT", "/api/models/me/it/settings"))
    assert there.private
    assert made_private < max(i for i, (_, path) in enumerate(hub.requests) if "/commit/" in path)


def test_a_dry_run_names_the_files_that_an_upload_would_delete(pushed, forks, home, hub, trained):
    full = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"w"}
    hub.repos["me/it"].commit("full", hub.files("me/it", pushed[1]["commit"]) | full, "a full model")
    argv = ("--repo", "me/it", "--revision", "full", "--eval", home / "e", "--dry-run", "--out", home / "p6", "--json")
    ended = forks.run("push", trained, *argv, *FAST)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["deleted"] == sorted(full)
    assert f"that an upload would delete: {', '.join(sorted(full))}" in ended.err
    assert full.items() <= hub.files("me/it", "full").items()


def test_a_changed_file_on_the_hub_is_an_error(pushed, forks, home, hub, trained):
    hub.spoil = lambda path, content: content + b" " if path == CONFIG else content
    try:
        ended = forks.run("push", trained, "--repo", "team/spoilt", "--out", home / "p4", *FAST)
    finally:
        hub.spoil = lambda path, content: content
    assert ended.code == 2
    assert f"{CONFIG} on the Hub is not the file that was uploaded (1 of " in ended.err
    assert RunDir.open(home / "p4", writes=False).manifest().status == "failed"
    again = forks.run("push", "--resume", home / "p4", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["changed"], "the spoilt file is replaced"


def test_a_missing_login_is_refused_before_anything_is_written(forks, home, trained):
    script = "import os; del os.environ['HF_TOKEN']"
    ended = forks.run("push", trained, "--repo", "me/none", "--out", home / "p5", before=script)
    assert ended.code == 2
    assert "me/none: not uploaded (nobody is logged in: run `hf auth login`" in ended.err
    assert ended.err.count("\n") == 1
    assert not RunDir(home / "p5", writes=False).hub_dir.exists()


def test_a_pushed_adapter_teaches_from_the_hub(pushed, forks, home, hub, trained):
    """By its commit; the anchor is a copy whose configuration another program wrote."""
    files = dict(hub.files("me/it"))
    config = json.loads(files[CONFIG])
    odd = {"r": "2", "lora_alpha": "2.0", "target_modules": str(config["target_modules"]), "task_type": None}
    files[CONFIG] = json.dumps({**config, **odd, "base_model_name_or_path": None}).encode()
    sha = hub.repos["me/it"].commit("odd", files, "odd")
    ref = f"hub:me/it@{pushed[1]['commit']}"
    roles = ("--base", "toy", "--teacher", f"geneval={ref},guidance=1.0", "--anchor", f"hub:me/it@{sha},guidance=1.0")
    small = changes(
        *SMALL,
        "train.iterations=1",
        "train.sample_every=0",
        "opd.extrapolate=1",
        "prompts=[{source: toy:geneval, limit: 4}]",
    )
    init = ("--init", trained)
    planned = forks.run("distill", *roles, *init, *small, "--dry-run")
    assert planned.code == 0, planned.err
    before = len(hub.requests)
    ended = forks.run("distill", *roles, *init, *small, "--out", home / "s")
    assert ended.code == 0, ended.err
    read = {path.rpartition("/")[2] for _, path in hub.requests[before:] if "/resolve/" in path}
    assert read == {"adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"}
    run = RunDir.open(home / "s", writes=False)
    parents = {parent.role: parent for parent in run.manifest().parents}
    assert parents["teacher_geneval"].ref == ref
    assert run.rows()[0]["kl"] == pytest.approx(0, abs=1e-9), "the student starts as its teacher"
    assert run.rows()[0]["kl_anchor"] == pytest.approx(0, abs=1e-9), "and as its anchor, whose update is the same"
