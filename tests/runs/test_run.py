"""Run directories: creation, manifest, metrics, checkpoints that survive damage."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, StorageError
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import atomic_write, sha256_file

RECIPE = recipes.build(
    {"stage": "teacher", "prompts": [{"source": "toy:geneval"}], "rewards": [{"name": "toy-geneval"}]}
)


def start(path):
    run = RunDir.create(path, "teacher")
    run.start(RECIPE)
    return run


@pytest.fixture
def run(tmp_path):
    """A running teacher."""
    return start(tmp_path / "r")


def save(run, step, text="state", keep=2):
    run.save_checkpoint(step, lambda folder: (folder / "state").write_text(text), keep)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, StorageError),
        (errno.EPERM, StorageError),
        (errno.EROFS, StorageError),
        (errno.ENOTDIR, ArtifactError),
    ],
)
def test_a_place_without_leave_to_write_is_an_error_of_storage(monkeypatch, tmp_path, number, kind):
    def refuse(path, *rest, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(kind, match=rf"r: cannot be written \({os.strerror(number)}\); choose another --out") as error:
        RunDir.create(tmp_path / "r", "teacher")
    assert error.value.exit_code == (4 if kind is StorageError else 2)


def test_new_names_are_below_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first, second = (RunDir.create(None, "teacher") for _ in range(2))
    assert first.path != second.path
    assert first.path.parent.name == "runs"
    assert first.path.name.startswith("teacher-20")


def test_a_used_directory_is_refused_with_three_ways_out(run):
    run.finish("done")
    with pytest.raises(ArtifactError) as refused:
        RunDir.create(run.path, "teacher")
    for way in ("--resume", "--force", "runs/teacher-"):
        assert way in str(refused.value)


def test_force_replaces_the_files_of_a_run_only(run):
    run.log({"iteration": 1})
    run.save_adapter(lambda folder: (folder / "weights").write_bytes(b"w"))
    run.finish("done")
    (run.path / "notes.txt").write_text("mine")
    RunDir.create(run.path, "teacher", force=True)
    assert not run.metrics_file.exists()
    assert not run.adapter_dir.exists()
    assert (run.path / "notes.txt").read_text() == "mine"


def test_a_killed_force_leaves_a_run_that_can_be_replaced(run, monkeypatch):
    run.finish("done")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flowopd_cli.system.files.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDir.create(run.path, "teacher", force=True)
    assert (run.manifest().status, run.manifest().artifacts) == ("interrupted", ())
    RunDir.create(run.path, "teacher", force=True)
    assert not run.recipe_file.exists()


def test_a_directory_that_is_filled_just_before_the_lock_is_refused(tmp_path, monkeypatch):
    rival, acquire = tmp_path / "r", Lock.acquire

    def late(lock):
        monkeypatch.setattr(Lock, "acquire", acquire)
        start(rival).finish("done")
        lock.acquire()

    monkeypatch.setattr(Lock, "acquire", late)
    with pytest.raises(ArtifactError, match="is not empty"):
        RunDir.create(rival, "teacher")
    assert RunDir.open(rival).manifest().status == "done"
    assert not (rival / ".lock").exists()


def test_leftovers_of_a_killed_process_are_removed_by_the_next(run):
    save(run, 1)
    run.finish("interrupted")
    leftovers = [run.path / ".manifest.json.99.part", run.checkpoints.folder / ".staging-step-000002" / "state"]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    again = RunDir.open(run.path)
    again.start(RECIPE)
    assert not any(path.exists() for path in leftovers)
    assert again.checkpoints.steps() == [1]


def test_a_run_that_was_taken_over_writes_nothing_more(run):
    (run.path / ".lock").write_text(json.dumps({"pid": 1, "birth": None, "host": "elsewhere"}))
    for write in (lambda: save(run, 1), lambda: run.save_adapter(lambda folder: None), lambda: run.finish("done")):
        with pytest.raises(ArtifactError, match="another process has taken this run over"):
            write()
    assert run.manifest().status == "running"
    assert run.checkpoints.steps() == []


def test_force_never_empties_a_directory_that_is_not_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="replaces runs only"):
        RunDir.create(tmp_path, "teacher", force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("f", "is a file"),
        ("f/r", r"cannot be written \(.+\); choose another --out"),
        ("x" * 300, r"cannot be written \(.+\); choose another --out"),
    ],
)
def test_a_directory_that_cannot_be_made(tmp_path, out, message):
    (tmp_path / "f").touch()
    with pytest.raises(ArtifactError, match=message):
        RunDir.create(tmp_path / out, "teacher")


def test_what_is_not_a_run_is_refused(tmp_path):
    for name in (tmp_path / "none", "x" * 5000):
        with pytest.raises(ArtifactError, match="no such directory"):
            RunDir.open(name)
    with pytest.raises(ArtifactError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_the_manifest_of_a_finished_run(run):
    begun = run.manifest()
    assert (begun.status, begun.stage, begun.run_id) == ("running", "teacher", "r")
    assert begun.recipe_sha == recipes.digest(RECIPE)
    assert begun.environment.packages["torch"]
    parents = (Parent(role="anchor", ref="base"), Parent(role="init", ref="x", sha256="1"))
    run.declare(Inputs(base=Base(ref="toy", sha256="b" * 64), parents=parents))
    atomic_write(run.eval_file("ocr"), "{}")
    (run.path / ".notes").write_text("hidden")
    save(run, 1)
    run.finish("done", {"reward": float("nan"), "kl": 0.25})
    ended = RunDir.open(run.path).manifest()
    assert ended.status == "done"
    assert ended.finished is not None
    assert ended.metrics == {"reward": None, "kl": 0.25}
    assert ended.parents == parents
    artifacts = {artifact.path: artifact for artifact in ended.artifacts}
    assert set(artifacts) == {"recipe.yaml", "eval/ocr.json"}
    assert artifacts["eval/ocr.json"].sha256 == sha256_file(run.eval_file("ocr"))
    assert artifacts["eval/ocr.json"].bytes == 2
    assert run.recipe() == RECIPE


def test_a_resumed_run_keeps_its_id_and_creation_time(run):
    run.declare(Inputs(base=Base(ref="toy", sha256="b" * 64)))
    run.finish("interrupted")
    before = run.manifest()
    longer = recipes.build(RECIPE.model_dump(mode="json"), overrides=["train.iterations=7"])
    RunDir.open(run.path).start(longer)
    after = run.manifest()
    assert (after.run_id, after.created, after.base) == (before.run_id, before.created, before.base)
    assert (after.status, after.recipe_sha) == ("running", recipes.digest(longer))


def test_rows_survive_a_torn_last_line_and_a_resume_logs_each_iteration_once(run):
    for iteration in range(1, 6):
        run.log({"iteration": iteration, "loss": float("inf"), "kl": torch.tensor(0.5)})
    with run.metrics_file.open("a") as handle:
        handle.write('{"iteration": 6, "lo')
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3, 4, 5]
    run.go_back(3)
    run.log({"step": 4})
    assert [row.get("iteration") for row in run.rows()] == [1, 2, 3, None]
    run.go_back(3)
    assert len(run.rows()) == 3
    assert run.rows()[0] == {"iteration": 1, "loss": None, "kl": 0.5}


def test_checkpoints_are_pruned_and_damaged_ones_skipped(run):
    for step in (10, 20, 30):
        save(run, step, str(step))
    assert sorted(path.name for path in run.checkpoints.folder.iterdir()) == ["step-000020", "step-000030"]
    assert run.checkpoints.newest() == (30, run.checkpoints.path(30))
    (run.checkpoints.path(30) / "state").write_text("bitrot")
    assert run.checkpoints.newest() == (20, run.checkpoints.path(20))
    (run.checkpoints.path(20) / "state").unlink()
    assert run.checkpoints.newest() is None


def test_a_writer_that_fails_leaves_the_last_checkpoint(run):
    def fail(folder):
        (folder / "state").write_text("half")
        raise OSError("disk full")

    save(run, 1)
    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(2, fail, keep=2)
    assert run.checkpoints.newest() == (1, run.checkpoints.path(1))
    save(run, 1, "again")
    assert (run.checkpoints.path(1) / "state").read_text() == "again"
    assert [path.name for path in run.checkpoints.folder.iterdir()] == ["step-000001"]


def test_checksums_of_files_outside_the_checkpoint_are_damage(run):
    save(run, 1)
    for name in ("../../../recipe.yaml", "/etc/hostname", "\ud800", ""):
        (run.checkpoints.path(1) / "checksums.json").write_text(json.dumps({name: "0"}))
        assert run.checkpoints.newest() is None


def test_a_follower_writes_nothing(tmp_path):
    run = RunDir(tmp_path / "r", writes=False)
    run.start(RECIPE)
    run.log({"iteration": 1})
    run.declare(Inputs(base=Base(ref="toy", sha256="b")))
    run.write_eval("ocr", "{}")
    run.write_image("x", None)
    save(run, 1)
    run.go_back(0)
    run.finish("done")
    assert not (tmp_path / "r").exists()
    assert run.rows() == []
    assert run.checkpoints.newest() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged manifest"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"run_id": "\\ud800"}', "surrogates not allowed"),
        (b"\xff", "invalid start byte"),
        (b"[]", "not a JSON object"),
        (b'{"status": "fine"}', "damaged manifest"),
    ],
)
def test_a_damaged_manifest_is_one_line(run, content, message):
    (run.path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest") as refused:
        RunDir.open(run.path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [{"created": "yesterday"}, {"created": "2026-01-01T00:00:00"}, {"stage": "../x"}, {"artifacts": [{"path": "x"}]}],
)
def test_a_wrong_field_of_a_manifest_is_named(run, changes):
    path = run.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ArtifactError, match=f"damaged manifest .{next(iter(changes))}"):
        RunDir.open(run.path)
