"""Run directories: creation, manifest, metrics, checkpoints that survive damage, locks, references."""

import json
import os

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.adapter_ref import AdapterRef, recorded_base
from flowopd_cli.runs.lock import Lock, _here
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import atomic_write, sha256_file

RECIPE = recipes.build(
    {"stage": "teacher", "prompts": [{"source": "toy:geneval"}], "rewards": [{"name": "toy-geneval"}]}
)


def started(path):
    run = RunDir.create(path, "teacher")
    run.start(RECIPE)
    return run


def with_adapter(path, *, base="b" * 64):
    run = started(path)
    run.adapter_dir.mkdir()
    (run.adapter_dir / "adapter_config.json").write_text("{}", encoding="utf-8")
    (run.adapter_dir / "adapter_model.safetensors").write_bytes(b"weights")
    run.declare(Inputs(base=Base(ref="toy", sha256=base)))
    run.finish("done", {"reward": 0.5})
    return run


def test_fresh_names_lie_under_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first, second = (RunDir.create(None, "teacher") for _ in range(2))
    assert first.path != second.path
    assert first.path.parent.name == "runs"
    assert first.path.name.startswith("teacher-20")


def test_a_used_directory_is_refused_with_three_ways_out(tmp_path):
    started(tmp_path / "r").finish("done")
    with pytest.raises(ArtifactError) as caught:
        RunDir.create(tmp_path / "r", "teacher")
    for way in ("--resume", "--force", "runs/teacher-"):
        assert way in str(caught.value)


def test_force_replaces_a_run_and_only_what_is_ours(tmp_path):
    run = with_adapter(tmp_path / "r")
    run.log({"iteration": 1})
    (run.path / "notes.txt").write_text("mine", encoding="utf-8")
    again = RunDir.create(run.path, "teacher", force=True)
    assert not again.metrics_file.exists()
    assert not again.adapter_dir.exists()
    assert (again.path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_force_that_is_killed_halfway_leaves_a_run_that_can_be_replaced(tmp_path, monkeypatch):
    run = with_adapter(tmp_path / "r")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flowopd_cli.system.files.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDir.create(run.path, "teacher", force=True)
    assert (run.manifest().status, run.manifest().artifacts) == ("interrupted", ())
    RunDir.create(run.path, "teacher", force=True)
    assert not run.recipe_file.exists()


def test_a_command_that_came_and_went_before_the_lock_is_seen(tmp_path, monkeypatch):
    """Another command fills the directory after it was looked at and before it is locked."""
    rival, acquire = tmp_path / "r", Lock.acquire

    def late(lock):
        monkeypatch.setattr(Lock, "acquire", acquire)
        started(rival).finish("done")
        lock.acquire()

    monkeypatch.setattr(Lock, "acquire", late)
    with pytest.raises(ArtifactError, match="is not empty"):
        RunDir.create(rival, "teacher")
    assert RunDir.open(rival).manifest().status == "done"
    assert not (rival / ".lock").exists()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    run = started(tmp_path / "r")
    run.save_checkpoint(1, lambda folder: (folder / "state").write_text("1"), keep=2)
    run.finish("interrupted")
    left = [run.path / ".manifest.json.99.part", run.checkpoints.folder / ".staging-step-000002" / "state"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    again = RunDir.open(run.path)
    again.start(RECIPE)
    assert not any(path.exists() for path in left)
    assert again.checkpoints.steps() == [1]


def test_hidden_files_are_no_artifacts(tmp_path):
    run = started(tmp_path / "r")
    (run.path / ".notes").write_text("x")
    run.finish("done")
    assert [artifact.path for artifact in run.manifest().artifacts] == ["recipe.yaml"]


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path):
    run = started(tmp_path / "r")
    (run.path / ".lock").write_text(json.dumps({"pid": 1, "birth": None, "host": "elsewhere"}))
    for write in (
        lambda: run.save_checkpoint(1, lambda folder: None, keep=1),
        lambda: run.save_adapter(lambda folder: None),
        lambda: run.finish("done"),
    ):
        with pytest.raises(ArtifactError, match="another process has taken this run over"):
            write()
    assert run.manifest().status == "running"
    assert run.checkpoints.steps() == []


def test_force_never_empties_a_directory_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ArtifactError, match="replaces runs only"):
        RunDir.create(tmp_path, "teacher", force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is a file"):
        RunDir.create(tmp_path / "f", "teacher")


@pytest.mark.parametrize("out", ["f/r", "x" * 300])
def test_out_that_cannot_be_made(tmp_path, out):
    (tmp_path / "f").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"cannot be written \(.+\); choose another --out"):
        RunDir.create(tmp_path / out, "teacher")


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ArtifactError, match="no such directory"):
        RunDir.open(tmp_path / "none")
    with pytest.raises(ArtifactError, match="not a run directory"):
        RunDir.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"stage": 1}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged manifest"):
        RunDir.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged manifest"):
        RunDir.open(tmp_path)


def test_manifest_of_a_whole_life(tmp_path):
    run = started(tmp_path / "r")
    begun = run.manifest()
    assert (begun.status, begun.stage, begun.run_id) == ("running", "teacher", "r")
    assert begun.recipe_sha == recipes.digest(RECIPE)
    assert begun.environment.packages["torch"]
    run.declare(
        Inputs(
            base=Base(ref="toy", sha256="b" * 64),
            parents=(
                Parent(role="anchor", ref="base"),
                Parent(role="init", ref="x", sha256="1"),
            ),
        )
    )
    atomic_write(run.eval_file("ocr"), "{}")
    run.save_checkpoint(1, lambda folder: (folder / "state").write_bytes(b"1"), keep=1)
    run.finish("done", {"reward": float("nan"), "kl": 0.25})
    ended = RunDir.open(run.path).manifest()
    assert ended.status == "done"
    assert ended.finished is not None
    assert ended.metrics == {"reward": None, "kl": 0.25}
    assert [p.role for p in ended.parents] == ["anchor", "init"]
    named = {a.path: a for a in ended.artifacts}
    assert set(named) == {"recipe.yaml", "eval/ocr.json"}
    assert named["eval/ocr.json"].sha256 == sha256_file(run.eval_file("ocr"))
    assert named["eval/ocr.json"].bytes == 2
    assert run.recipe() == RECIPE


def test_resumed_run_keeps_its_id_and_birth(tmp_path):
    run = started(tmp_path / "r")
    run.declare(Inputs(base=Base(ref="toy", sha256="b" * 64)))
    run.finish("interrupted")
    before = run.manifest()
    again = RunDir.open(run.path)
    longer = recipes.build(RECIPE.model_dump(mode="json"), overrides=["train.iterations=7"])
    again.start(longer)
    after = again.manifest()
    assert (after.run_id, after.created, after.base) == (before.run_id, before.created, before.base)
    assert (after.status, after.recipe_sha) == ("running", recipes.digest(longer))


def test_rows_survive_a_torn_last_line_and_resume_logs_each_iteration_once(tmp_path):
    run = started(tmp_path / "r")
    for iteration in range(1, 6):
        run.log({"iteration": iteration, "step": 2 * iteration, "loss": float("inf")})
    with run.metrics_file.open("a", encoding="utf-8") as handle:
        handle.write('{"iteration": 6, "lo')
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3, 4, 5]
    run.go_back(3)
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3]
    run.log({"iteration": 4})
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3, 4]
    assert run.rows()[0]["loss"] is None


def test_rows_without_iteration_are_cut_by_step(tmp_path):
    run = started(tmp_path / "r")
    for step in range(4):
        run.log({"step": step})
    run.go_back(1)
    assert [row["step"] for row in run.rows()] == [0, 1]


def test_a_line_broken_in_the_middle_is_reported(tmp_path):
    run = started(tmp_path / "r")
    run.metrics_file.write_text('{"a": 1}\noops\n{"a": 2}\n', encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"metrics.jsonl:2: not JSON"):
        run.rows()


def test_log_takes_tensors_of_one_element(tmp_path):
    torch = pytest.importorskip("torch")
    run = started(tmp_path / "r")
    run.log({"loss": torch.tensor(0.5), "pair": [1, torch.tensor(2.0)]})
    assert run.rows() == [{"loss": 0.5, "pair": [1, 2.0]}]


def test_pictures_and_results_go_where_they_belong(tmp_path):
    image = pytest.importorskip("PIL.Image").new("RGB", (2, 3), "red")
    run = started(tmp_path / "r")
    run.write_image("000025", image)
    run.write_eval("ocr", '{"mean": 0.5}')
    assert run.image_file("000025").read_bytes().startswith(b"\x89PNG")
    assert json.loads(run.eval_file("ocr").read_text(encoding="utf-8")) == {"mean": 0.5}


def test_checkpoints_are_pruned_and_damaged_ones_skipped(tmp_path):
    run = started(tmp_path / "r")
    for step in (10, 20, 30):
        run.save_checkpoint(step, lambda folder, s=step: (folder / "state").write_text(str(s)), keep=2)
    assert sorted(p.name for p in run.checkpoints.folder.iterdir()) == ["step-000020", "step-000030"]
    assert run.checkpoints.newest() == (30, run.checkpoints.path(30))
    (run.checkpoints.path(30) / "state").write_text("bitrot")
    assert run.checkpoints.newest() == (20, run.checkpoints.path(20))
    (run.checkpoints.path(20) / "state").unlink()
    assert run.checkpoints.newest() is None


def test_a_writer_that_dies_leaves_the_last_checkpoint(tmp_path):
    run = started(tmp_path / "r")
    run.save_checkpoint(1, lambda folder: (folder / "state").write_text("1"), keep=2)

    def dies(folder):
        (folder / "state").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(2, dies, keep=2)
    assert run.checkpoints.newest() == (1, run.checkpoints.path(1))
    run.save_checkpoint(1, lambda folder: (folder / "state").write_text("again"), keep=2)
    assert (run.checkpoints.path(1) / "state").read_text() == "again"
    assert [p.name for p in run.checkpoints.folder.iterdir()] == ["step-000001"]


def test_two_writers_refuse_and_a_dead_owner_is_replaced(tmp_path):
    run = started(tmp_path / "r")
    with pytest.raises(ArtifactError, match=f"process {os.getpid()} .* is writing this run"):
        RunDir.open(run.path).start(RECIPE)
    run.finish("done")
    lock = run.path / ".lock"
    assert not lock.exists()
    for owner in ({"pid": 2**22 + 1, **_here(), "flock": True}, {"pid": "?"}):
        lock.write_text(json.dumps(owner), encoding="utf-8")
        again = RunDir.open(run.path)
        again.start(RECIPE)
        again.finish("done")


def test_a_follower_writes_nothing(tmp_path):
    run = RunDir(tmp_path / "r", writes=False)
    run.start(RECIPE)
    run.log({"iteration": 1})
    run.declare(Inputs(base=Base(ref="toy", sha256="b")))
    run.write_eval("ocr", "{}")
    run.write_image("x", None)
    run.save_checkpoint(1, lambda folder: None, keep=1)
    run.go_back(0)
    run.finish("done")
    assert not (tmp_path / "r").exists()
    assert run.rows() == []
    assert run.checkpoints.newest() is None


def test_atomic_write_leaves_no_debris(tmp_path):
    atomic_write(tmp_path / "a" / "f", "one")
    atomic_write(tmp_path / "a" / "f", b"two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f"]
    assert (tmp_path / "a" / "f").read_text() == "two"


def test_references_to_runs_folders_and_the_base(tmp_path):
    run = with_adapter(tmp_path / "r")
    references = [AdapterRef.parse(text) for text in (str(run.path), str(run.adapter_dir), "base")]
    assert [reference.kind for reference in references] == ["run", "folder", "base"]
    by_run, by_folder, base = (reference.resolve() for reference in references)
    assert by_run.path == by_folder.path == run.adapter_dir
    assert by_run.base == by_folder.base == Base(ref="toy", sha256="b" * 64)
    assert by_run.sha256 == by_folder.sha256
    assert by_run.parent("teacher_ocr") == Parent(role="teacher_ocr", ref=str(run.path), sha256=by_run.sha256)
    assert (base.path, base.sha256, base.base, base.header) == (None, None, None, None)


def test_a_folder_may_record_its_base_in_its_config(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_sha256": "abc"}', encoding="utf-8")
    assert AdapterRef.parse(str(tmp_path)).resolve().base == Base(ref="", sha256="abc")


def test_the_record_of_a_base_is_read_from_any_folder_that_has_one(tmp_path):
    run = with_adapter(tmp_path / "r")
    expected = Base(ref="toy", sha256="b" * 64)
    assert recorded_base(run.path) == recorded_base(run.adapter_dir) == expected
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}', encoding="utf-8")
    assert recorded_base(tmp_path) == AdapterRef.parse(str(tmp_path)).resolve().base == Base(ref="me/base")
    assert recorded_base(None) is None
    assert recorded_base(run.checkpoints.folder) is None


def test_the_shape_of_an_adapter_is_what_its_configuration_says(tmp_path):
    config = {"r": 8, "lora_alpha": 4.0, "target_modules": ["a", "b"], "base_sha256": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert AdapterRef.parse(str(tmp_path)).shape() == {"rank": 8, "alpha": 4, "targets": ("a", "b")}
    config = {"lora_alpha": 0.5, "target_modules": "all-linear"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert AdapterRef.parse(str(tmp_path)).shape() == {}
    assert AdapterRef.parse("base").shape() == AdapterRef.parse("hub:me/m").shape() == {}


def test_diffusers_folders_are_adapters_too(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"w")
    adapter = AdapterRef.parse(str(tmp_path)).resolve()
    assert adapter.path == tmp_path
    assert adapter.base is None


def test_references_that_lead_nowhere(tmp_path):
    with pytest.raises(ArtifactError, match="no such run directory"):
        AdapterRef.parse(str(tmp_path / "none")).resolve()
    with pytest.raises(ArtifactError, match="neither a run nor an adapter folder"):
        AdapterRef.parse(str(tmp_path)).resolve()
    unfinished = started(tmp_path / "r")
    with pytest.raises(ArtifactError, match="status is running"):
        AdapterRef.parse(str(unfinished.path)).resolve()
    for text in ("", "hub:name", "hub:a/b/c", "hub:/b"):
        with pytest.raises(ArtifactError):
            AdapterRef.parse(text)


def test_hub_references_are_fetched_only_when_resolved(monkeypatch, tmp_path):
    asked = {}

    def download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    reference = AdapterRef.parse("hub:me/model@v1")
    assert not asked
    with pytest.raises(ArtifactError, match="no adapter in this repository"):
        reference.resolve()
    assert asked == {"repo": "me/model", "revision": "v1"}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert reference.resolve().path == tmp_path / "adapter"


def test_a_failing_hub_is_one_line(monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("404\nnot there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ArtifactError, match=r"cannot be fetched \(404 not there\)"):
        AdapterRef.parse("hub:me/model").resolve()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"run_id": "\\ud800"}', "surrogates not allowed"),
        (b"\xff", "invalid start byte"),
        (b"[]", "not a JSON object"),
        (b'{"status": "fine"}', "damaged manifest"),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, content, words):
    run = started(tmp_path / "r")
    (run.path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged manifest") as caught:
        RunDir.open(run.path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"created": "yesterday"}, {"created": "2026-01-01T00:00:00"}, {"stage": "../x"}, {"artifacts": [{"path": "x"}]}],
)
def test_a_manifest_of_other_kinds_is_named_by_its_field(tmp_path, changes):
    run = started(tmp_path / "r")
    path = run.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"damaged manifest .{next(iter(changes))}"):
        RunDir.open(run.path)


@pytest.mark.parametrize("line", [b"[1]", b"3", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_a_row_that_is_no_object_is_named_by_its_line_and_passed_over_at_the_end(tmp_path, line):
    run = started(tmp_path / "r")
    run.metrics_file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2: not JSON, or not an object"):
        run.rows()
    run.metrics_file.write_bytes(b'{"step": 1}\n' + line + b"\n")
    assert run.rows() == [{"step": 1}]


def test_checksums_that_lead_elsewhere_are_damage(tmp_path):
    run = started(tmp_path / "r")
    run.save_checkpoint(1, lambda path: (path / "a").write_text("x"), 2)
    sums = run.checkpoints.path(1) / "checksums.json"
    for name in ("../../../recipe.yaml", "/etc/hostname", "\ud800", ""):
        sums.write_text(json.dumps({name: "0"}))
        assert run.checkpoints.newest() is None


def test_a_run_of_a_name_that_no_file_can_have():
    with pytest.raises(ArtifactError, match="no such directory"):
        RunDir.open("x" * 5000)
