"""A training resumes with its own inputs, at whatever path they are now, and with no others."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support import toyruns
from support.forks import Kill

import flowopd_cli
from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir

UNLOADABLE = "from flowopd_cli.models.sd3 import SD3Model\nSD3Model.load = None\n"
BASE = Path(flowopd_cli.__file__).parent / "toy" / "weights"

DECAY = ("weight_decay: 0.0001", "weight_decay: 0.0002")


@pytest.fixture(scope="module")
def made(forks, whole, tmp_path_factory):
    """A base, a prompt file, two teachers, their student, and a killed student."""
    root = tmp_path_factory.mktemp("things") / "mine"
    base, prompts = shutil.copytree(BASE, root / "base"), root / "prompts.jsonl"
    rows = [{"prompt": text, "task": "geneval"} for text in ("a red circle", "a blue square", "a green star")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("teacher", "other"):
        shutil.copytree(whole.paths[name], root / name)
    command = [*toyruns.distill(root / "teacher", root / "other"), "--base", base]
    command += toyruns.changes(
        f"prompts=[{{source: {prompts}}}]", "model.resolution=null", "model.max_sequence_length=1"
    )
    for name, kill in (("whole", None), ("r", Kill(rows=3))):
        ended = forks.run(*command, "--out", root / name, kill=kill, below=root / name)
        assert ended.killed if kill else ended.code == 0, ended.err
    return shutil.copytree(root, root.with_name("kept"))


@pytest.fixture
def mine(made):
    """A fresh copy of that folder."""
    root = made.with_name("mine")
    shutil.rmtree(root)
    return shutil.copytree(made, root)


def edit(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def retrained(root, name):
    """Another adapter in a teacher's place, itself whole."""
    shutil.rmtree(root / name)
    shutil.copytree(root / ("other" if name == "teacher" else "teacher"), root / name)


REFUSED = [
    (lambda root: retrained(root, "other"), ["anchor {root}/other was ", "teacher_ocr {root}/other was "], True),
    (
        lambda root: retrained(root, "teacher"),
        ["init {root}/teacher was ", "teacher_geneval {root}/teacher was "],
        True,
    ),
    (
        lambda root: edit(root / "r" / "recipe.yaml", DECAY),
        ["train.weight_decay was 0.0001, is 0.0002"],
        True,
    ),
    (
        lambda root: edit(root / "r" / "recipe.yaml", DECAY, ("seed: 0", "seed: 1")),
        ["seed was 0, is 1", "train.weight_decay was 0.0001, is 0.0002"],
        True,
    ),
    (lambda root: edit(root / "prompts.jsonl", ("a red", "a grey")), ["the set of prompts was "], False),
]


@pytest.mark.parametrize(
    ("change", "differences", "unloaded"), REFUSED, ids=["anchor", "teacher", "recipe", "two", "prompts"]
)
def test_a_resume_with_changed_inputs_is_refused_with_their_list(forks, mine, change, differences, unloaded):
    change(mine)
    manifest, rows = (mine / "r" / "manifest.json").read_bytes(), len(RunDir(mine / "r").rows())
    ended = forks.run("distill", "--resume", mine / "r", before=UNLOADABLE if unloaded else "")
    assert ended.code == 2, ended.err
    (line,) = [line for line in ended.err.splitlines() if "cannot resume, its checkpoints were made with other" in line]
    assert all(text.format(root=mine) in line for text in differences)
    assert line.count(" was ") == len(differences)
    assert len(RunDir(mine / "r").rows()) == rows
    if unloaded:
        assert (mine / "r" / "manifest.json").read_bytes() == manifest
    parents = {parent.role: parent.sha256 for parent in RunDir(mine / "r").manifest().parents}
    assert parents == {parent.role: parent.sha256 for parent in RunDir(mine / "whole").manifest().parents}


def test_a_changed_base_is_refused_before_training(forks, tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    command = [*toyruns.teacher("toy-quality"), "--base", base, *toyruns.changes("model.resolution=null")]
    command += toyruns.changes("model.max_sequence_length=1", "prompts=[{source: 'toy:all'}]")
    path = tmp_path / "r"
    assert forks.run(*command, "--out", path, kill=Kill(rows=3), below=path).killed
    config = base / "transformer" / "config.json"
    config.write_text(config.read_text() + "\n")
    ended = forks.run("teacher", "--resume", path)
    assert ended.code == 2, ended.err
    assert f"cannot resume, its checkpoints were made with other inputs: base {base} was " in ended.err
    assert len(RunDir(path).rows()) >= 3
    assert RunDir(path).manifest().base == RunDir(path).checkpoints.provenance().base


def test_moved_inputs_are_accepted(forks, mine):
    for name in ("base", "teacher", "other", "prompts.jsonl"):
        (mine / name).rename(mine / f"moved-{name}")
    ended = forks.run("distill", "--resume", mine / "r")
    assert ended.code == 2
    assert "no such" in ended.err
    places = {"model.pretrained": "base", "adapter.init": "teacher", "routing.geneval.ref": "teacher"}
    places |= {"routing.ocr.ref": "other", "anchor.ref": "other", "prompts.0.source": "prompts.jsonl"}
    moved = toyruns.changes(*(f"{key}={mine / f'moved-{name}'}" for key, name in places.items()))
    ended = forks.run("distill", "--resume", mine / "r", *moved)
    assert ended.code == 0, ended.err
    assert status_now(mine / "r") == "done"
    assert toyruns.figures(mine / "r") == toyruns.figures(mine / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (mine / "r" / name).read_bytes() == (mine / "whole" / name).read_bytes()
    assert {parent.ref for parent in RunDir(mine / "r").manifest().parents} == {
        str(mine / f"moved-{n}") for n in ("teacher", "other")
    }


def test_a_moved_prompt_file_is_named_by_prompts(flowopd, tmp_path):
    file, moved = tmp_path / "p.txt", tmp_path / "q.txt"
    file.write_text("a red circle\na blue square\na green star\n", encoding="utf-8")
    settings = (text for text in toyruns.SMALL if not text.startswith("train.iterations"))
    command = ["teacher", "--reward", "toy-quality", "--prompts", f"{file},task=a", *toyruns.changes(*settings)]
    longer = toyruns.changes("train.iterations=3")
    for name, more in {"whole": longer, "r": toyruns.changes("train.iterations=1")}.items():
        assert flowopd(*command, *more, "--out", tmp_path / name)[0] == 0
    file.rename(moved)
    resume = ("teacher", "--resume", tmp_path / "r", *longer)
    code, _, err = flowopd(*resume)
    assert (code, "p.txt: no such file; if it has moved, name its new place" in " ".join(err.split())) == (2, True)
    code, _, err = flowopd(*resume, "--prompts", f"{moved},task=b")
    assert (code, f"give the new place of {file} alone" in " ".join(err.split())) == (2, True)
    original = moved.read_text(encoding="utf-8")
    moved.write_text(original.replace("red", "grey"), encoding="utf-8")
    code, _, err = flowopd(*resume, "--prompts", moved)
    assert (code, "made with other inputs: the set of prompts was" in " ".join(err.split())) == (2, True)
    moved.write_text(original, encoding="utf-8")
    code, _, err = flowopd(*resume, "--prompts", moved)
    assert code == 0, err
    assert flowopd(*resume[:3], "--prompts", moved)[0] == 0
    run, whole = RunDir(tmp_path / "r"), RunDir(tmp_path / "whole")
    assert toyruns.figures(run.path) == toyruns.figures(whole.path)
    assert run.manifest().prompts == whole.manifest().prompts
    pictures = [file.relative_to(whole.path) for file in whole.path.glob("samples/*.png")]
    assert pictures
    assert all((run.path / name).read_bytes() == (whole.path / name).read_bytes() for name in pictures)
    code, _, err = flowopd(*resume, "--prompts", file)
    assert (code, "leave it out, its prompts are where they were" in " ".join(err.split())) == (2, True)


def test_settings_without_effect_on_results_may_change(forks, mine):
    """Here the two best of three rows; micro-batches and pictures are as they were."""
    changed = toyruns.changes("train.keep_checkpoints=9", "train.checkpoint_every=1", "train.keep_best.metric=kl")
    ended = forks.run("distill", "--resume", mine / "r", *changed)
    assert ended.code == 0, ended.err
    run = RunDir(mine / "r")
    assert run.checkpoints.steps() == [2, 3, 4, 5]
    assert yaml.safe_load(run.recipe_file.read_text())["train"]["keep_best"] == {"metric": "kl", "direction": "max"}
    assert toyruns.figures(mine / "r") == toyruns.figures(mine / "whole")
