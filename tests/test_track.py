"""Curves for TensorBoard beside the metrics, through a stand-in for its writer and, where it is installed, itself."""

import sys
import types

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import MissingDependency, StorageError
from flowopd_cli.progress import Silent
from flowopd_cli.run import RunDir
from flowopd_cli.track import tracked

DATA = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
RECIPE = recipes.build(DATA, overrides=["train.track=tensorboard"])


class Writer:
    made: list["Writer"] = []  # noqa: RUF012

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.points, self.closed = folder, purge_step, [], False
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.points.append((name, value, step))

    def close(self):
        self.closed = True


class Heard(Silent):
    def __init__(self):
        self.rows = []

    def step(self, row):
        self.rows.append(row)


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "r", "teacher")


def test_every_figure_is_a_point_at_its_iteration(monkeypatch, run):
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    heard = Heard()
    progress = tracked(RECIPE, run, heard)
    progress.start(5, "teacher", 3)
    progress.step({"iteration": 4, "reward": 0.5, "loss": 0.25})
    progress.note("on")
    progress.done()
    (writer,) = Writer.made
    assert writer.folder == str(run.tensorboard_dir)
    assert writer.purge_step == 4
    assert writer.points == [("reward", 0.5, 4), ("loss", 0.25, 4)]
    assert writer.closed
    assert heard.rows == [{"iteration": 4, "reward": 0.5, "loss": 0.25}]


def test_a_full_disk_is_one_line_and_does_not_spoil_the_end(monkeypatch, run):
    class Full(Writer):
        def add_scalar(self, name, value, step):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Full))
    progress = tracked(RECIPE, run, Silent())
    progress.start(5, "teacher")
    with pytest.raises(StorageError, match=f"{run.tensorboard_dir}: cannot be written .No space left on device; "):
        progress.step({"iteration": 1, "reward": 0.5})
    progress.done()


def test_without_the_field_nothing_is_wrapped(run):
    heard = Heard()
    assert tracked(recipes.build(DATA), run, heard) is heard
    assert tracked(RECIPE, RunDir(run.path, writes=False), heard) is heard
    assert tracked(recipes.build({"stage": "eval"}), run, heard) is heard


def test_the_missing_package_is_named(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependency, match=r"flowopd\[track\]"):
        tracked(RECIPE, run, Silent())


def test_tensorboard_itself_reads_the_curves(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = tracked(RECIPE, run, Silent())
    progress.start(2, "teacher", 0)
    for iteration in (1, 2):
        progress.step({"iteration": iteration, "reward": iteration / 4})
    progress.done()
    read = EventAccumulator(str(run.tensorboard_dir))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
