"""Training with non-finite numbers: its error, the saved batch, and its replay."""

import json

import pytest
import torch
from click.testing import Result
from support import copies
from support.recorders import Notes
from typer.testing import CliRunner

from flowopd_cli.cli.app import app
from flowopd_cli.errors import ArtifactError, DivergedError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training import replay as _replay
from flowopd_cli.train import loop
from flowopd_cli.train.faults import Dump, Fault


def recipe(folder, pipeline, stage="distill", **train):
    copies.prepare(folder, pipeline)
    return copies.recipe(stage, folder, pipeline, updates=1, checkpoint_every=1, **train)


def exploded(built):
    """The recipe with a learning rate at which one step is enough."""
    return built.model_copy(update={"train": built.train.model_copy(update={"lr": 1e30, "iterations": 50})})


def runs(*argv) -> Result:
    return CliRunner().invoke(app, ["runs", *map(str, argv)])


@pytest.mark.parametrize("stage", ["distill", "coldstart"])
def test_a_training_that_explodes_stops_by_itself_and_can_be_replayed(tmp_path, pipeline_folder, stage):
    progress = Notes()
    with pytest.raises(DivergedError, match="flowopd runs replay") as caught:
        copies.train(tmp_path / "run", exploded(recipe(tmp_path, pipeline_folder, stage)), progress)
    assert "5. optimizer step in a row" in str(caught.value)
    run = RunDir(tmp_path / "run")
    assert run.manifest().status == "failed"
    rows, events = run.rows(), [event for event in run.events() if event["kind"] == "skipped"]
    skipped = [row["iteration"] for row in rows if row["skipped"]]
    assert [event["iteration"] for event in events] == [*skipped, skipped[-1] + 1]
    assert len(events) == 5
    texts = set((tmp_path / "a.txt").read_text().splitlines() + (tmp_path / "b.txt").read_text().splitlines())
    assert all(event["prompts"] and set(event["prompts"]) <= texts for event in events)
    assert sum("optimizer step skipped" in note for note in progress.notes) == 5
    done = runs("replay", run.path, "--device", "cpu", "--json")
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert result["iteration"] == events[-1]["iteration"]
    assert 0 < result["bad"] <= len(result["rows"]) <= 5
    assert {row["prompt"] for row in result["rows"]} <= texts
    table = runs("replay", run.path, "--device", "cpu")
    assert "nan" in table.stdout or "inf" in table.stdout
    assert f"{result['bad']} of {len(result['rows'])} rows are not finite" in table.stderr


def test_a_teacher_whose_pictures_are_no_numbers_stops_by_itself(tmp_path, pipeline_folder):
    with pytest.raises(DivergedError, match="for 5 iterations no picture could be scored") as caught:
        copies.train(tmp_path / "run", exploded(recipe(tmp_path, pipeline_folder, "teacher")))
    assert caught.value.exit_code == 5
    run = RunDir(tmp_path / "run")
    assert [row["invalid"] for row in run.rows()][-4:] == [1.0] * 4
    assert ["could be scored" in event["text"] for event in run.events()] == [True]


def test_a_replay_computes_what_the_training_did(tmp_path, pipeline_folder, monkeypatch):
    """A batch of a training in which all is well is finite again, row by row, with the loss that it had."""
    first = {}
    passes, trainable = loop.Guard.passes, copies.WeightBank.trainable

    def capture_names(self):
        first.setdefault("names", list(trainable(self)))
        return trainable(self)

    def capture_batch(self, loss, batch):
        if "batch" not in first:
            policy = {n: p.detach().clone() for n, p in zip(first["names"], self.parameters, strict=True)}
            first.update(batch=batch, policy=policy, loss=float(loss.total.detach()))
        return passes(self, loss, batch)

    monkeypatch.setattr(copies.WeightBank, "trainable", capture_names)
    monkeypatch.setattr(loop.Guard, "passes", capture_batch)
    run = copies.train(tmp_path / "run", recipe(tmp_path, pipeline_folder, iterations=1, micro=4))
    dump = Dump(1, 0, Fault("loss", ("made up",)), first["policy"], first["batch"])
    run.save_fault(1, dump.save)
    result = _replay.replay(run.path)
    assert result["bad"] == 0
    assert sum(row["loss"] for row in result["rows"]) == pytest.approx(first["loss"], rel=1e-4)
    assert [row["prompt"] for row in result["rows"]] == [prompt.text for prompt in first["batch"].prompts]


def test_a_run_without_faults_has_nothing_to_replay(tmp_path, pipeline_folder):
    run = copies.train(tmp_path / "run", recipe(tmp_path, pipeline_folder, iterations=1))
    with pytest.raises(ArtifactError, match="nothing to replay"):
        _replay.replay(run.path)
    assert run.events() == []


def test_a_damaged_dump_is_refused(tmp_path, pipeline_folder):
    with pytest.raises(DivergedError):
        copies.train(tmp_path / "run", exploded(recipe(tmp_path, pipeline_folder, skip_limit=1)))
    run = RunDir(tmp_path / "run")
    (folder,) = run.faults_dir.iterdir()
    file = next(folder.glob("batch*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        _replay.replay(run.path)


def test_warnings_are_shown_once_and_logged(tmp_path, pipeline_folder, monkeypatch):
    """No picture can be scored, so no iteration takes a step; the warning appears once."""
    progress = Notes()
    built = recipe(tmp_path, pipeline_folder, "teacher", iterations=3, sample_every=0)
    monkeypatch.setattr(copies.Light, "__call__", nothing)
    run = copies.train(tmp_path / "run", built, progress)
    (event,) = run.events()
    assert event["kind"] == "warning"
    assert "no picture of this iteration could be scored" in event["text"]
    assert sum("no picture of this iteration" in note for note in progress.notes) == 1
    assert [row["step"] for row in run.rows()] == [0, 0, 0]
    assert all(row["reward"] is None for row in run.rows())


def nothing(self, images, prompts):
    zero = torch.zeros(len(prompts))
    return copies.RewardResult(zero, {"half": zero}, zero > 1)
