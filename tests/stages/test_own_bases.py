"""``flowopd distill`` with teachers that have a base of their own: a larger one, and one of another family."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny

import flowopd_cli
from flowopd_cli.models.files.pipelines import base_fingerprint
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.runs.manifest import Base
from flowopd_cli.runs.run import RunDir

PACKAGE = Path(flowopd_cli.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
PROMPTS = ("--set", "prompts=[{source: prompts.jsonl}]")
SMALL = {
    "model.resolution": "null",
    "model.max_sequence_length": 4,
    "model.dtype": "float32",
    "model.device": "cpu",
    "adapter.rank": 4,
    "adapter.alpha": 4,
    "sampling.steps": 3,
    "sampling.guidance": 2.0,
    "train.iterations": 2,
    "train.groups": 2,
    "train.group_size": 2,
    "train.checkpoint_every": 1,
    "train.sample_every": 0,
    "train.ema_decay": 0,
    "train.lr": 0.01,
    "anchor.beta": 0.1,
    "anchor.ref": "base",
}


def flags(**more):
    """``--set`` for the small settings and ``more`` of them, whose dots are double underscores."""
    named = {**SMALL, **{key.replace("__", "."): value for key, value in more.items()}}
    return [word for key, value in named.items() if value is not None for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Three bases with one autoencoder: a student's, ``large`` with the same encoders, and a FLUX, ``flux``."""
    root = tmp_path_factory.mktemp("bases")
    flux, student, large = tiny.assemble_flux(1), tiny.assemble(0), tiny.assemble(2, **tiny.LARGER)
    for pipeline in (student, large):
        pipeline.vae = flux.vae
    large.text_encoder, large.text_encoder_2 = student.text_encoder, student.text_encoder_2
    rows = [{"prompt": text, "task": task} for text in tiny.TEXTS for task in ("one", "two")]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, pipeline in {"student": student, "large": large, "flux": flux}.items():
        pipeline.save_pretrained(root / name)
    return root


@pytest.fixture
def call(flowopd, bases, monkeypatch):
    """Run a command in the folder of the bases that has to succeed; returns its result."""
    monkeypatch.chdir(bases)

    def run(*argv):
        code, out, err = flowopd(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def distill(*teachers, **more):
    """A small distillation of the tiny student, without ``--out``."""
    named = [word for text in teachers for word in ("--teacher", text)]
    return ("distill", "--base", "student", *PROMPTS, *named, *flags(**more))


def weights(path):
    return load_file(RunDir.open(path).adapter_dir / "adapter_model.safetensors")


def assert_same(one, other):
    """Equal up to float32 sums in another order, and trained."""
    assert max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key) > 1e-3
    for key, value in other.items():
        torch.testing.assert_close(one[key], value, atol=1e-6, rtol=1e-3)


def digest_of(model):
    """Of the base's own weights, under the names that they have without adapters."""
    state = {key.replace(".base_layer", ""): tensor for key, tensor in model.transformer.state_dict().items()}
    base = {key: tensor for key, tensor in state.items() if ".lora_" not in key}
    return {key: hashlib.sha256(base[key].numpy().tobytes()).hexdigest() for key in sorted(base)}


@pytest.fixture
def loads(monkeypatch):
    """The models that are loaded, by the name of their folder, with the digest that each base had then."""
    seen = {}

    def load(kind, pretrained, options, plain=PipelineModel.load.__func__):
        model = plain(kind, pretrained, options)
        seen.setdefault(Path(pretrained).name, []).append((model, digest_of(model)))
        return model

    monkeypatch.setattr(PipelineModel, "load", classmethod(load))
    return seen


@pytest.fixture
def encoding(monkeypatch):
    """The folders whose text encoders are loaded."""
    folders = []

    def pipeline(self, plain=PipelineModel._pipeline):
        folders.append(self.folder.name)
        return plain(self)

    monkeypatch.setattr(PipelineModel, "_pipeline", pipeline)
    return folders


def test_a_larger_base_teaches_a_smaller_one(call, loads, encoding):
    call(*distill("one=base,base=large", "two=base,base=large,guidance=1", model__cache_prompts="false"), "--out", "l")
    run = RunDir.open("l")
    assert [row["iteration"] for row in run.rows()] == [1, 2]
    assert run.rows()[0]["kl"] > 0
    parents = {parent.role: parent for parent in run.manifest().parents}
    assert parents["teacher_one"].ref == "base"
    assert parents["teacher_one"].base == Base(ref="large", sha256=base_fingerprint("large"))
    assert parents["anchor"].base is None
    assert run.manifest().base.sha256 == base_fingerprint("student")
    assert set(encoding) == {"student"}  # the larger one has equal encoders
    assert {name: len(models) for name, models in loads.items()} == {"student": 1, "large": 1}
    assert all(digest_of(model) == before for [(model, before)] in loads.values())


def test_flux_teaches_an_sd3_with_its_autoencoder(call, loads, encoding):
    call(*distill("one=base,base=flux,guidance=3.5", "two=base"), "--out", "f")
    run = RunDir.open("f")
    assert run.recipe().routing["one"].family == "flux"
    assert all(row["kl/one"] > 0 for row in run.rows() if "kl/one" in row)
    assert set(encoding) <= {"student", "flux"}
    assert "flux" in encoding
    [(flux, before)] = loads["flux"]
    assert type(flux).__name__ == "FluxModel"
    assert digest_of(flux) == before


def test_an_offloaded_base_teaches_the_same(call):
    call(*distill("one=base,base=large", "two=base,base=large"), "--out", "here")
    call(*distill(*("one=base,base=large,offload=cpu", "two=base,base=large,offload=cpu")), "--out", "there")
    assert_same(weights("there"), weights("here"))


def test_adapters_of_an_own_base(call, flowopd):
    trained = ("--set", "rewards=[{name: jpeg_compressibility}]", *PROMPTS, *flags(anchor__beta=None, anchor__ref=None))
    for base in ("large", "student"):
        call("teacher", "--base", base, *trained, "--out", f"t-{base}")
    call(*distill("one=t-large,base=large", "two=t-student"), "--out", "both")
    roles = {parent.role: parent for parent in RunDir.open("both").manifest().parents}
    assert roles["teacher_one"].sha256
    assert (roles["teacher_one"].base is None, roles["teacher_two"].base is None) == (False, True)
    for teachers in (("one=t-large", "two=t-student"), ("one=t-student,base=large", "two=t-student")):
        code, _, err = flowopd(*distill(*teachers), "--out", "wrong")
        assert code == 2
        assert "t-student" in err
        assert "base" in err
        assert not Path("wrong").exists()


def test_a_resumed_run_ends_as_an_undisturbed_one(call, flowopd, bases):
    shutil.copytree(bases / "large", bases / "moving")
    named = distill("one=base,base=moving", "two=base,base=moving")
    call(*named, "--out", "whole")
    call(*named, "--out", "parts", "--set", "train.iterations=1")
    call("distill", "--resume", "parts", "--set", "train.iterations=2")
    one, two = weights("whole"), weights("parts")
    assert all(torch.equal(one[key], two[key]) for key in one)
    moved = ("--set", "routing.one.base=moved", "--set", "routing.two.base=moved")
    (bases / "moving").rename(bases / "moved")
    call("distill", "--resume", "parts", "--set", "train.iterations=3", *moved)
    tiny.assemble(9, **tiny.LARGER).transformer.save_pretrained(bases / "moved" / "transformer")
    code, _, err = flowopd("distill", "--resume", "parts", "--set", "train.iterations=4", *moved)
    assert code == 2
    assert "the base of teacher_one was" in err


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_base_with_another_autoencoder_is_refused_before_weights_are_read(
    flowopd, bases, tmp_path, monkeypatch, dry_run
):
    """Neither pipeline has any weights in its folder."""
    monkeypatch.chdir(tmp_path)
    for name, source in (("student", bases / "student"), ("other", bases / "large")):
        shutil.copytree(source, name, ignore=shutil.ignore_patterns("*.safetensors"))
    Path("prompts.jsonl").write_text((bases / "prompts.jsonl").read_text())
    config = json.loads(Path("other/vae/config.json").read_text())
    Path("other/vae/config.json").write_text(json.dumps(config | {"scaling_factor": 1.5}))
    named = distill("one=base,base=other", "two=base")
    code, out, err = flowopd(*named, *(["--dry-run"] if dry_run else ["--out", "run"]))
    assert (code, out) == (2, "")
    assert "routing.one.base: other: its autoencoder is not the student's (scaling_factor is 1.5, " in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_and_shards_train_what_one_process_trains(bases, tmp_path):
    """A sharded student beside a teacher's base that is whole in each process."""
    teachers = ("one=base,base=large", "two=base,base=flux,guidance=3.5")
    ways = {"one": [], "two": ["--processes", "2"], "pieces": ["--processes", "2", "--set", "model.shard=true"]}
    for name, more in ways.items():
        argv = [sys.executable, "-m", "flowopd_cli", *distill(*teachers), "--out", str(tmp_path / name), *more]
        done = subprocess.run(argv, cwd=bases, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for name in ("two", "pieces"):
        for key, value in weights(tmp_path / "one").items():  # Adam magnifies rounding where a gradient is small
            assert float((weights(tmp_path / name)[key] - value).norm()) <= 1e-3 * float(value.norm()), key


@pytest.mark.parametrize(("base", "notes"), [("flux", 2), ("large", 1)])
def test_an_own_base_with_other_encoders_counts_its_long_prompts(flowopd, bases, monkeypatch, tmp_path, base, notes):
    """Three prompts, of which two are longer than either base reads; one of these has the task of the own base."""
    monkeypatch.chdir(bases)
    long = "a red circle and " * 9
    rows = [{"prompt": long, "task": "one"}, {"prompt": f"{long}more", "task": "two"}, {"prompt": "a", "task": "two"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ("--set", f"prompts=[{{source: {tmp_path / 'p.jsonl'}}}]", "--out", tmp_path / "run")
    code, _, err = flowopd(*distill(f"one=base,base={base}", "two=base", train__iterations=1), *more)
    text = " ".join(err.split())
    assert code == 0
    assert text.count("prompts are longer than the") == notes
    assert "2 of 3 prompts are longer than the 14 tokens that the text encoders read" in text
    assert ("1 of 1 prompts are longer than the 14 tokens that the text encoders of flux read" in text) == (notes == 2)
