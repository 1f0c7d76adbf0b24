"""The checkpoint that a training resumes from, and the changes that it refuses."""

import errno
import os
from pathlib import Path

import pytest
import torch
from support.recorders import Notes

from flowopd_cli import recipe as recipes
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, UnreadableError
from flowopd_cli.runs.checkpoints import PROVENANCE
from flowopd_cli.runs.inspect import verify
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training import resume as _resume
from flowopd_cli.stages.training.resume import prompts_digest
from flowopd_cli.train.checkpoint import TrainState

RECIPE = recipes.build({"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]})
PROMPT = Prompt("1", "a red circle", "a", {"tag": "color"})


@pytest.fixture
def stopped(tmp_path):
    """A run with checkpoints after iterations 1 and 2, and three rows of metrics."""
    run = RunDir.create(tmp_path / "r", "teacher")
    run.start(RECIPE)
    teacher = Parent(role="teacher_a", ref="runs/a", sha256="t")
    run.declare(Inputs(base=Base(ref="toy", sha256="b"), parents=(teacher,), prompts="p"))
    for iteration in (1, 2):
        run.save_checkpoint(iteration, TrainState(iteration, iteration, {"policy/x": torch.zeros(1)}).save, keep=2)
    for iteration in (1, 2, 3):
        run.log({"iteration": iteration})
    run.finish("interrupted")
    return run


def damage(run, *steps):
    for step in steps:
        next(run.checkpoints.path(step).glob("*.safetensors")).write_bytes(b"torn")


@pytest.mark.parametrize(
    ("broken", "left", "notes"), [((), 2, []), ((2,), 1, ["step-000002 is damaged: going on from step-000001"])]
)
def test_a_resumed_run_goes_on_from_its_newest_sound_checkpoint(stopped, broken, left, notes):
    damage(stopped, *broken)
    progress = Notes()
    assert _resume.resume_state(stopped, True, progress).iteration == left
    assert len(stopped.rows()) == left
    assert stopped.checkpoints.steps() == list(range(1, left + 1))
    assert [text in line for text, line in zip(notes, progress.notes, strict=True)] == [True] * len(notes)


def test_a_run_with_only_damaged_checkpoints_does_not_restart(stopped):
    damage(stopped, 1, 2)
    with pytest.raises(ArtifactError, match=r"step-000001, step-000002.* --force") as refused:
        _resume.resume_state(stopped, True, Notes())
    assert "\n" not in str(refused.value)
    assert len(stopped.rows()) == 3


@pytest.fixture
def forbid(monkeypatch):
    """Forbids reading files and folders of this name."""

    def install(name):
        for owner, function in ((Path, "open"), (os, "scandir")):
            monkeypatch.setattr(owner, function, refusing(getattr(owner, function), name))

    def refusing(function, name):
        def call(path, *rest, **options):
            if Path(path).name == name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *rest, **options)

        return call

    return install


@pytest.mark.parametrize("name", ["checksums.json", "state.safetensors", PROVENANCE, "checkpoints", "metrics.jsonl"])
def test_what_may_not_be_read_is_not_taken_for_damaged_or_absent(stopped, forbid, monkeypatch, name):
    forbid(name)
    with pytest.raises(UnreadableError, match=r"cannot be read \(Permission denied\); make it readable") as refused:
        _resume.resume_state(stopped, True, Notes())
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    assert len(stopped.rows()) == 3
    assert stopped.checkpoints.steps() == [1, 2]


def test_verify_names_a_checkpoint_that_may_not_be_read(stopped, forbid):
    forbid("state.safetensors")
    faults = [finding.fault for finding in verify(stopped.path) if finding.kind == "checkpoint"]
    assert ["cannot be read (Permission denied)" in fault for fault in faults] == [True, True]


def test_changed_parents_are_refused(stopped):
    again = RunDir.open(stopped.path)
    again.start(RECIPE)
    anchor = Inputs(base=Base(ref="toy", sha256="b"), parents=(Parent(role="anchor", ref="base"),), prompts="p")
    with pytest.raises(ArtifactError, match="teacher_a was runs/a, is none; anchor was none, is base"):
        again.declare(anchor)


def test_changed_packages_are_noted(stopped, monkeypatch):
    again = RunDir.open(stopped.path)
    again.start(RECIPE)
    made = again.manifest().environment
    other = made.model_copy(update={"packages": {**made.packages, "torch": "0.1"}})
    monkeypatch.setattr(RunDir, "manifest", lambda self: manifest.model_copy(update={"environment": other}))
    manifest = stopped.checkpoints.provenance()
    progress = Notes()
    _resume.resume_state(again, True, progress)
    assert progress.notes == [
        f"since the checkpoint torch was {made.packages['torch']}, is 0.1: figures may differ in their last digits"
    ]


def test_processes_that_find_different_checkpoints_refuse(stopped, monkeypatch):
    monkeypatch.setattr(_resume.GROUP, "gather", lambda mine: [mine, (1, "x", "y")])
    with pytest.raises(ArtifactError, match=r"different checkpoints \(step 2 and step 1\): copy the run"):
        _resume.resume_state(stopped, True, Notes())
    monkeypatch.setattr(_resume.GROUP, "gather", lambda mine: [mine, None])
    with pytest.raises(ArtifactError, match=r"\(step 2 and none\)"):
        _resume.resume_state(stopped, True, Notes())


@pytest.mark.parametrize(
    "other",
    [
        {"b": [PROMPT]},
        {"a": [PROMPT, PROMPT]},
        {"a": [Prompt("1", "a red square", "a", PROMPT.metadata)]},
        {"a": [Prompt("1", PROMPT.text, "a", {"tag": "shape"})]},
    ],
)
def test_the_digest_of_prompts_tells_them_apart(other):
    assert prompts_digest({"a": [PROMPT]}) == prompts_digest({"a": [Prompt("1", PROMPT.text, "a", {"tag": "color"})]})
    assert prompts_digest({"a": [PROMPT]}) != prompts_digest(other)
