"""``flowopd eval`` of several adapters: equal to single evaluations, one base, resumed, in one table and report."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from flowopd_cli.cli import launch, several
from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.models.adapter_files import AdapterConfig, write_adapter
from flowopd_cli.models.files.pipelines import base_fingerprint, linear_shapes
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages import eval as stage
from flowopd_cli.stages.evaluation import journal
from flowopd_cli.toy import folder

SMALL = ("--limit", "2", "--images-per-prompt", "1", "--batch", "1", "--set", "eval.steps=2", "--quiet")
EVAL = ("eval", "--suite", "quality,ocr", *SMALL)


def adapter(path, rank, seed, targets):
    """A random LoRA of the toy base."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, (outputs, inputs) in linear_shapes(folder()).items():
        if name.endswith(targets):
            a, b = (torch.randn(*shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
            factors[name] = LoraFactors(a, b, 0.02)
    write_adapter(path, factors, AdapterConfig(rank, 0.02 * rank, targets, "toy", base_fingerprint(folder())))
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [adapter(root / "one", 2, 0, ("attn.to_q", "attn.to_v")), adapter(root / "x" / "two", 3, 1, ("attn.to_q",))]


@pytest.fixture
def named(adapters):
    """Flags that name the two adapters and the base."""
    return [word for ref in (adapters[0], "base", adapters[1]) for word in ("--adapter", str(ref))]


def contents(run):
    """What an evaluation found: its results, rows and pictures."""
    paths = [*run.glob("eval/*.json*"), *run.glob("images/**/*.png")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def test_each_adapter_is_evaluated_as_if_alone_on_one_base(flowopd, adapters, named, tmp_path, monkeypatch):
    bases, load = [], stage.load_model
    monkeypatch.setattr(stage, "load_model", lambda *args: bases.append(args) or load(*args))
    monkeypatch.setenv("FLOWOPD_REPORT", "1")
    code, out, err = flowopd(*EVAL, *named, "--out", tmp_path / "all", "--json")
    monkeypatch.setenv("FLOWOPD_REPORT", "0")
    assert (code, len(bases)) == (0, 1), err
    found = json.loads(out)
    assert list(found["runs"]) == ["one", "base", "two"]
    assert found["against"] == "base"
    assert set(found["models"]) == {"one", "base", "two"}
    assert set(found["paired"]) == {"one", "two"}
    assert found["paired"]["two"]["quality"]["prompts"] == 2
    for ref, name in (("base", "base"), (adapters[1], "two")):
        assert flowopd(*EVAL, "--adapter", ref, "--out", tmp_path / name)[0] == 0
        assert contents(tmp_path / "all" / name) == contents(tmp_path / name)
        one, other = (RunDir.open(path).manifest() for path in (tmp_path / "all" / name, tmp_path / name))
        assert (one.status, one.parents, one.base) == ("done", other.parents, other.base)
    pictures = [contents(tmp_path / "all" / name) for name in ("base", "one", "two")]
    assert pictures[0] != pictures[1] != pictures[2] != pictures[0]
    table = (tmp_path / "all" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| base", "| one", "| two"]
    assert "Paired differences" in (tmp_path / "all" / "report.html").read_text()
    code, out, err = flowopd("report", tmp_path / "all", "--out", tmp_path / "again", "--json")
    assert code == 0, err
    assert json.loads(out)["paired"] == found["paired"]


def test_a_killed_evaluation_goes_on_and_repeats_nothing(flowopd, named, tmp_path, monkeypatch):
    assert flowopd(*EVAL, *named, "--out", tmp_path / "whole")[0] == 0
    drawn, draw = [], stage.draw_images

    def counted(model, sampler, prompts, seeds, *rest):
        drawn.extend(seeds)
        if len(drawn) == stop:
            raise KeyboardInterrupt
        return draw(model, sampler, prompts, seeds, *rest)

    monkeypatch.setattr(stage, "draw_images", counted)
    total = len(list((tmp_path / "whole").glob("*/images/**/*.png")))
    stop = total // 2 + 1  # in the second of the three
    code, _, err = flowopd(*EVAL, *named, "--out", tmp_path / "all")
    assert code == 130
    assert f"resume with: flowopd eval --resume {tmp_path / 'all'}\n" in err
    statuses = [RunDir.open(tmp_path / "all" / name).manifest().status for name in ("one", "base", "two")]
    assert statuses == ["done", "interrupted", "interrupted"]
    code, _, err = flowopd(*EVAL, *named, "--out", tmp_path / "all")
    assert code == 2
    assert f"go on with flowopd eval --resume {tmp_path / 'all'}" in err
    first = contents(tmp_path / "all" / "one")
    drawn.clear()
    stop = -1
    code, out, _ = flowopd("eval", "--resume", tmp_path / "all", "--quiet", "--json")
    assert (code, len(drawn)) == (0, total - total // 2)
    assert list(json.loads(out)["runs"]) == ["one", "base", "two"]
    for name in ("one", "base", "two"):
        assert contents(tmp_path / "all" / name) == contents(tmp_path / "whole" / name)
    assert contents(tmp_path / "all" / "one") == first
    monkeypatch.setattr(journal, "score", lambda *args: pytest.fail("a picture was scored again"))
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("a model was loaded for nothing"))
    resume = ("eval", "--resume", tmp_path / "all", "--quiet", "--fail-under", "quality=0.99")
    code, _, err = flowopd(*resume)
    assert code == 3
    assert [line.split(":")[0] for line in err.splitlines()] == ["one", "base", "two"]


def test_force_replaces_the_runs_of_the_folder_s_list_also_after_a_kill_that_left_some_out(
    flowopd, adapters, named, tmp_path, monkeypatch
):
    folder, create = tmp_path / "all", RunDir.create

    def killed(path, *rest, **more):
        if path.name == "two":
            raise KeyboardInterrupt
        return create(path, *rest, **more)

    monkeypatch.setattr(several, "_run", lambda *rest: None)
    monkeypatch.setattr(several, "_compare", lambda *rest: None)
    with monkeypatch.context() as kill:
        kill.setattr(RunDir, "create", killed)
        assert flowopd(*EVAL, *named, "--out", folder)[0] == 130
    code, _, err = flowopd("eval", "--resume", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{folder / 'two'}: no run, but {folder / several.LIST} names it: start all again with --force" in err
    (folder / "notes.txt").write_text("x")
    (folder / "other").mkdir()
    code, _, err = flowopd(*EVAL, "--adapter", "base", "--adapter", adapters[1], "--out", folder, "--force")
    assert code == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["base", "evaluations.json", "notes.txt", "other", "two"]
    assert json.loads((folder / several.LIST).read_text()) == ["base", "two"]


def test_processes_share_a_folder_that_the_user_did_not_name(flowopd, named, tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "relaunch", lambda argv, processes, device: calls.append(argv) or 0)
    assert flowopd(*EVAL, *named, "--processes", "2")[0] == 0
    (argv,) = calls
    assert argv[-2] == "--out"
    assert argv[-1].startswith("runs/eval-")


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(flowopd, named, tmp_path):
    assert flowopd(*EVAL, *named, "--out", tmp_path / "one")[0] == 0
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    argv = [*map(str, (*EVAL, *named)), "--processes", "2", "--out", str(tmp_path / "two"), "--json"]
    done = subprocess.run([sys.executable, "-m", "flowopd_cli", *argv], env=env, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "two")
    for name in ("one", "base", "two"):
        assert contents(tmp_path / "two" / name) == contents(tmp_path / "one" / name)


def test_several_guidances_of_several_adapters(flowopd, adapters, tmp_path):
    argv = (*EVAL, "--adapter", adapters[0], "--adapter", "base", "--guidance", "1,2")
    code, out, err = flowopd(*argv, "--out", tmp_path / "all", "--json")
    assert code == 0, err
    assert list(json.loads(out)["models"]) == [
        "base, guidance 1", "base, guidance 2", "one, guidance 1", "one, guidance 2"
    ]  # fmt: skip


def test_what_cannot_be_evaluated_together_is_refused_before_there_is_a_folder(flowopd, adapters, named, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("x")
    shutil.copytree(adapters[0], tmp_path / "inside" / "adapter")
    cases = [
        ([*named, "--adapter", "base"], "--adapter base: named twice"),
        ([*named, "--images", tmp_path], "name one --adapter, or none"),
        ([*named, "--adapter", tmp_path / "none"], "no such run directory, adapter folder or file"),
        ([*named, "--out", tmp_path / "used"], "used: is not empty; give --out a fresh name"),
        ([*named, "--out", tmp_path / "used", "--force"], "used: is not empty; give --out a fresh name"),
        (["--adapter", "base", "--adapter", tmp_path / "inside" / "adapter", "--out", tmp_path / "inside"], "--out"),
    ]
    for flags, words in cases:
        code, _, err = flowopd(*EVAL, *flags, *([] if "--out" in flags else ["--out", tmp_path / "e"]))
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err
    assert not (tmp_path / "e").exists()


def test_a_dry_run_describes_every_evaluation(flowopd, named, tmp_path):
    code, out, err = flowopd(*EVAL, *named, "--out", tmp_path / "all", "--dry-run", "--json")
    assert code == 0, err
    assert [json.loads(line)["recipe"]["adapter"] for line in out.splitlines()] == named[1::2]
    assert not (tmp_path / "all").exists()
