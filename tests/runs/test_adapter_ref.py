"""References to adapters, the base that they record, and how often a command reads their files."""

import json
import sys
from collections import Counter

import pytest
from support.old_run import copy_old_run
from support.tiny_adapters import MODULE, pair, safetensors, write_adapter

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.adapter_ref import AdapterRef, recorded_base
from flowopd_cli.runs.manifest import Base, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system import files

SMALL = ("train.iterations=1", "train.groups=2", "train.group_size=2", "train.micro=2", "sampling.steps=2")
TASKS = ("--prompts", "toy:geneval", "--prompts", "toy:ocr")
SET = [word for text in (*SMALL, "train.sample_every=0") for word in ("--set", text)]


@pytest.fixture
def hashed(monkeypatch):
    """How often each file is hashed, by its path."""
    counts, sha256_file = Counter(), files.sha256_file

    def count(path):
        counts[str(path)] += 1
        return sha256_file(path)

    for name, module in list(sys.modules.items()):
        if name.startswith("flowopd_cli") and getattr(module, "sha256_file", None) is sha256_file:
            monkeypatch.setattr(module, "sha256_file", count)
    return counts


@pytest.mark.parametrize(
    "argv",
    [
        ["merge", "a", "b"],
        ["eval", "--suite", "quality", "--adapter", "a", "--limit", "1", "--set", "eval.steps=1"],
        ["distill", "--init", "a", "--teacher", "geneval=a", "--teacher", "ocr=b", "--anchor", "b", *TASKS, *SET],
        ["push", "a", "--dry-run", "--set", "push.verify_steps=1"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_command_hashes_each_adapter_file_once(flowopd, hashed, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        copy_old_run(tmp_path / name)
    code, _, err = flowopd(*argv, "--out", "out")
    assert code == 0, err
    inputs = {name: number for name, number in hashed.items() if name.startswith(("a/adapter", "b/adapter"))}
    assert "a/adapter/adapter_model.safetensors" in inputs
    assert set(inputs.values()) == {1}, inputs


def resolve(ref):
    return AdapterRef.parse(str(ref)).resolve()


@pytest.fixture
def run(tmp_path):
    return RunDir.open(copy_old_run(tmp_path / "r"))


def write_config(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_references_to_runs_folders_and_the_base(run):
    by_run, by_folder, base = map(resolve, (run.path, run.adapter_dir, "base"))
    assert [adapter.ref.kind for adapter in (by_run, by_folder, base)] == ["run", "folder", "base"]
    assert by_run.path == by_folder.path == run.adapter_dir
    assert by_run.base == by_folder.base == run.manifest().base
    assert by_run.sha256 == by_folder.sha256
    assert by_run.parent("teacher_ocr") == Parent(role="teacher_ocr", ref=str(run.path), sha256=by_run.sha256)
    assert (base.path, base.sha256, base.base, base.header) == (None, None, None, None)


def test_the_base_is_that_of_the_run_else_of_the_configuration(run, tmp_path):
    assert recorded_base(run.path) == recorded_base(run.adapter_dir) == run.manifest().base
    assert recorded_base(None) is None
    assert recorded_base(run.checkpoints.folder) is None
    for config, base in (({"base_sha256": "abc"}, ("", "abc")), ({"base_model_name_or_path": "me/b"}, ("me/b", None))):
        write_config(tmp_path, **config)
        assert recorded_base(tmp_path) == resolve(tmp_path).base == Base(ref=base[0], sha256=base[1])


def test_the_shape_of_an_adapter_is_that_of_its_configuration(tmp_path):
    shape = AdapterRef.parse(str(tmp_path)).shape
    write_adapter(tmp_path, pair(rank=8), r=8, lora_alpha=4.0, target_modules=["to_q"])
    assert shape() == {"rank": 8, "alpha": 4, "targets": ("to_q",)}
    write_adapter(tmp_path, pair(rank=8), lora_alpha=0.5, target_modules=".*")
    assert shape() == {"rank": 8, "targets": ("attn.to_q",)}
    (tmp_path / "adapter_model.safetensors").unlink()
    assert shape() == AdapterRef.parse("base").shape() == AdapterRef.parse("hub:me/m").shape() == {}


@pytest.mark.parametrize(
    ("tensors", "metadata", "alpha"),
    [
        ({}, None, 8),
        ({}, {"transformer.r": 8, "transformer.lora_alpha": 24, "transformer.target_modules": ".*"}, 24),
        ({f"transformer.{MODULE}.alpha": ("F16", [], b"\0\x40")}, None, 2),
        ({f"transformer.{MODULE}.alpha": ("BF16", [1], b"\x80\x40")}, None, 4),
    ],
)
def test_the_shape_of_an_adapter_in_the_form_of_diffusers_is_that_of_its_tensors(tmp_path, tensors, metadata, alpha):
    header = metadata and {"lora_adapter_metadata": json.dumps(metadata)}
    weights = safetensors({**pair(rank=8, prefix="transformer."), **tensors}, header)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(weights)
    assert AdapterRef.parse(str(tmp_path)).shape() == {"rank": 8, "alpha": alpha, "targets": ("attn.to_q",)}


def test_a_folder_in_the_form_of_diffusers_is_an_adapter(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"w")
    assert (resolve(tmp_path).path, resolve(tmp_path).base) == (tmp_path, None)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "diffusion_pytorch_model-00001-of-00002"])
def test_a_file_of_a_full_model_stands_for_its_folder(tmp_path, name):
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(b"w")
    assert AdapterRef.parse(str(file)).shape() == {}
    (tmp_path / "config.json").touch()
    assert AdapterRef.parse(str(file)).shape() == {"kind": "full"}
    assert (resolve(file).path, resolve(file).sha256) == (tmp_path, resolve(tmp_path).sha256)


def test_a_safetensors_file_is_an_adapter(run, tmp_path):
    file = tmp_path / "kohya.safetensors"
    file.write_bytes(b"w")
    adapter = resolve(file)
    assert (adapter.ref.kind, adapter.path, adapter.base) == ("folder", file, None)
    alone = adapter.sha256
    (tmp_path / "other.safetensors").write_bytes(b"v")
    assert resolve(file).sha256 == alone
    moved = file.rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert resolve(moved).sha256 == alone
    file = moved.rename(file)
    weights = run.adapter_dir / "adapter_model.safetensors"
    assert (resolve(weights).base, resolve(weights).sha256) == (run.manifest().base, resolve(run.path).sha256)
    file.rename(tmp_path / "kohya.pt")
    with pytest.raises(ArtifactError, match="is not a safetensors file, nor a folder; pickled weights are not read"):
        resolve(tmp_path / "kohya.pt")


@pytest.mark.parametrize("text", ["owner/name", "owner/name@v1", "https://huggingface.co/owner/name"])
def test_a_hub_id_without_its_prefix_is_refused_with_it(text):
    expected = f"hub:{text.removeprefix('https://huggingface.co/')}"
    with pytest.raises(ArtifactError, match=f"an adapter on the Hub is written {expected}$"):
        resolve(text)
    for path in ("runs/t", "./owner/name", "name"):
        with pytest.raises(ArtifactError, match=r"no such run directory, adapter folder or file$"):
            resolve(path)


def test_references_without_an_adapter_are_refused(run, tmp_path):
    files.remove(run.adapter_dir)
    for ref, message in (
        (tmp_path / "none", "no such run directory"),
        (tmp_path, "neither a run nor an adapter folder"),
        (run.path, r"no adapter \(status done\)"),
    ):
        with pytest.raises(ArtifactError, match=message):
            resolve(ref)
    for text in ("", "hub:name", "hub:a/b/c", "hub:/b"):
        with pytest.raises(ArtifactError):
            AdapterRef.parse(text)


def test_a_run_of_eval_is_no_adapter_but_names_the_one_that_it_used(run):
    files.remove(run.adapter_dir)
    manifest = json.loads((run.path / "manifest.json").read_text())
    for stage, parents, way_out in (
        ("eval", [{"role": "policy", "ref": "runs/s"}], "; name the adapter that it used: runs/s"),
        ("eval", [{"role": "policy", "ref": "base"}], ""),
        ("push", [{"role": "pushed", "ref": "runs/t"}], "; name the adapter that it used: runs/t"),
    ):
        (run.path / "manifest.json").write_text(json.dumps({**manifest, "stage": stage, "parents": parents}))
        with pytest.raises(ArtifactError, match=f"is a run of {stage}, which makes no adapter{way_out}$"):
            resolve(run.path)


def test_hub_references_are_downloaded_when_they_are_resolved(monkeypatch, tmp_path):
    requests = []

    def download(repo, *, revision, allow_patterns):
        requests.append((repo, revision))
        if revision is None:
            raise RuntimeError("404\nnot there")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    reference = AdapterRef.parse("hub:me/model@v1")
    assert requests == []
    with pytest.raises(ArtifactError, match="no adapter in this repository"):
        reference.resolve()
    write_config(tmp_path / "adapter")
    assert reference.resolve().path == tmp_path / "adapter"
    assert requests == [("me/model", "v1")] * 2
    with pytest.raises(ArtifactError, match=r"cannot be fetched \(404 not there\)"):
        resolve("hub:me/model")
