"""Trackers of a training: TensorBoard itself, and mocks of the other libraries."""

import importlib
import json
import sys
import time
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest
from PIL import Image

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import MissingDependency, RecipeError
from flowopd_cli.reports import track
from flowopd_cli.reports.trackers import RunInfo
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

DATA = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}


class Listener(Silent):
    def __init__(self):
        self.rows, self.notes = [], []
        self.step, self.note = self.rows.append, self.notes.append


def recipe(names):
    return recipes.build(DATA, overrides=[f"train.track={names}"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDir.create(tmp_path / "r", "teacher")
    run.start(recipes.build(DATA))
    yield run
    run.finish("done")


@pytest.fixture
def install(monkeypatch):
    """Puts a mock in the place of a tracker's package."""
    importlib.import_module("accelerate.tracking")  # it looks for the packages when it is imported
    monkeypatch.setattr(track, "check_installed", lambda names: None)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def install(name):
        module = MagicMock()
        module.Image = lambda pixels: pixels.shape
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


def picture(run, iteration):
    run.write_image(f"{iteration:06d}", Image.new("RGB", (4, 2), (iteration, 0, 0)))


def train(run, names, iterations, done=0):
    """The calls of a training to its listener, with a picture after every second iteration; returns the notes."""
    listener = Listener()
    progress = track.tracked(recipe(names), run, listener)
    progress.start(10, "teacher", done)
    for iteration in iterations:
        progress.step({"iteration": iteration, "step": 2 * iteration, "reward": iteration / 4, "loss": float("nan")})
        if iteration % 2 == 0:
            picture(run, iteration)
    progress.done()
    assert [row["iteration"] for row in listener.rows] == list(iterations)
    return listener.notes


@pytest.mark.parametrize(
    ("value", "names"),
    [("tensorboard", ("tensorboard",)), ("wandb,mlflow,wandb", ("wandb", "mlflow")), ("[]", ()), ("null", ())],
)
def test_the_field_takes_one_name_or_several(value, names):
    built = recipe(value)
    assert built.train.trackers == names
    assert built.train.track == (",".join(names) or "none")
    assert recipes.build(built.model_dump(mode="json")) == built


@pytest.mark.parametrize(("value", "message"), [("wanb", "did you mean 'wandb'"), ("3", "no tracker '3'")])
def test_an_unknown_tracker_is_refused_with_the_nearest(value, message):
    with pytest.raises(RecipeError, match=message):
        recipe(value)


def test_without_the_field_nothing_is_wrapped(run):
    listener = Listener()
    assert track.tracked(recipes.build(DATA), run, listener) is listener
    assert track.tracked(recipe("tensorboard"), RunDir(run.path, writes=False), listener) is listener
    assert track.tracked(recipes.build({"stage": "eval"}), run, listener) is listener


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder of that name"])
@pytest.mark.parametrize("name", sorted(track.EXTRAS))
def test_the_missing_package_and_its_extra_are_named(monkeypatch, run, name, found):
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: found)
    message = rf"{name} is not installed: pip install 'flowopd\[{track.EXTRAS[name]}\]'"
    with pytest.raises(MissingDependency, match=message):
        track.tracked(recipe(name), run, Silent())


def test_the_record_of_a_run_keeps_its_identity_and_holds_no_secret(run):
    key = "sk-" + "a" * 20
    built = recipe("wandb").model_copy(update={"seed": 7})
    rewards = ({"name": "vlm", "options": {"url": "http://me:word@host/v1", "api_key": "abc", "note": key}},)
    unchecked = built.model_copy(update={"rewards": tuple(recipes.RewardSpec.model_construct(**r) for r in rewards)})
    info = RunInfo.of(run, unchecked, 3)
    assert info.config["seed"] == 7
    assert info.config["train.iterations"] == 500
    assert info.config["rewards.0.options.url"] == "http://***@host/v1"
    assert info.config["rewards.0.options.api_key"] == "***"
    assert key not in json.dumps(info.config) + info.recipe
    assert "word" not in info.recipe
    assert info.identity == RunInfo.of(RunDir(run.path), built, 9).identity


def test_a_tracker_that_fails_is_one_warning_and_never_stops_the_run(monkeypatch, run, install):
    broken = MagicMock(where="nowhere")
    broken.figures.side_effect = SystemExit("no network\nat all")
    monkeypatch.setattr(track, "open_tracker", lambda name, info: broken)
    assert train(run, "wandb", (1, 2, 3)) == [
        "wandb: nowhere",
        "warning: wandb is disabled for this run: no network at all; the run continues",
    ]


def test_a_tracker_that_hangs_is_abandoned(monkeypatch, run, install):
    monkeypatch.setattr(track, "open_tracker", lambda name, info: MagicMock(figures=lambda *_: time.sleep(3)))
    monkeypatch.setattr(track, "TIMEOUT", 0.05)
    started = time.monotonic()
    assert train(run, "mlflow", (1,))[-1] == "warning: mlflow: not finished after 0.05 s; the rest is lost"
    assert time.monotonic() - started < 2


def test_wandb_continues_its_run_and_sends_nothing_of_the_machine(run, install):
    wandb = install("wandb")
    logged = wandb.init.return_value
    logged.offline, logged.url = False, "https://somewhere/run"
    picture(run, 2)  # of an iteration that was logged before the resume
    assert train(run, "wandb", (3, 4), done=2) == ["wandb: https://somewhere/run"]
    options = wandb.init.call_args.kwargs
    assert (options["project"], options["name"], options["resume"]) == ("flowopd", "r", "allow")
    assert (options["id"], options["dir"]) == (RunInfo.of(run, recipe("wandb"), 0).identity, str(run.trackers_dir))
    settings = wandb.Settings.call_args.kwargs
    assert (settings["console"], settings["x_disable_meta"], settings["save_code"]) == ("off", True, False)
    assert wandb.config.update.call_args.args[0]["train.track"] == "wandb"
    assert logged.log.call_args_list == [
        call({"reward": 0.75}, step=3),
        call({"reward": 1.0}, step=4),
        call({"samples": [(2, 4, 3)]}, step=4),
    ]
    assert logged.finish.called


def test_wandb_without_a_login_does_not_ask_for_one(run, install):
    install("wandb").login.return_value = False
    [note] = train(run, "wandb", (1,))
    assert note.startswith("warning: wandb is disabled for this run: no login: run `wandb login`, set WANDB_API_KEY")


def test_mlflow_continues_the_run_that_it_recorded(run, install):
    mlflow = install("mlflow")
    mlflow.search_experiments.return_value = []
    mlflow.start_run.return_value.info.run_id = "4711"
    mlflow.get_tracking_uri.return_value = "http://me:word@host"
    limits = mlflow.utils.validation
    limits.MAX_PARAM_VAL_LENGTH, limits.MAX_PARAMS_TAGS_PER_BATCH = 6000, 100
    assert train(run, "mlflow", (1, 2)) == ["mlflow: run 4711 at http://***@host"]
    batches = [logged.args[0] for logged in mlflow.log_params.call_args_list]
    assert {key: value for batch in batches for key, value in batch.items()}["train.track"] == "mlflow"
    pixels = mlflow.log_image.call_args.args[0]
    assert (pixels.shape, mlflow.log_image.call_args.kwargs["step"]) == ((2, 4, 3), 2)
    train(run, "mlflow", (3,), done=2)
    assert [start.kwargs["run_id"] for start in mlflow.start_run.call_args_list] == [None, "4711"]
    metrics = [(logged.args[0], logged.kwargs["step"]) for logged in mlflow.log_metrics.call_args_list]
    assert metrics == [({"reward": 0.25}, 1), ({"reward": 0.5}, 2), ({"reward": 0.75}, 3)]
    assert mlflow.end_run.call_count == 2


def test_trackio_continues_by_name(run, install):
    trackio = install("trackio")
    train(run, "trackio", (1, 2))
    options = trackio.init.call_args.kwargs
    assert (options["project"], options["resume"]) == ("flowopd", "allow")
    assert options["name"].startswith("r-")
    assert options["config"]["train.track"] == "trackio"
    logged = trackio.init.return_value
    assert logged.log.call_args_list[-1] == call({"samples": (2, 4, 3)}, step=2)
    assert logged.finish.called


def test_tensorboard_reads_curves_pictures_and_recipe(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(run, "tensorboard", (1, 2, 3)) == [f"tensorboard: tensorboard --logdir {run.tensorboard_dir}"]
    train(run, "tensorboard", (2, 3, 4), done=1)
    events = EventAccumulator(str(run.tensorboard_dir))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("reward")]
    assert points == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert events.Tags()["scalars"] == ["reward"]
    assert [(p.step, p.width, p.height) for p in events.Images("samples")] == [(2, 4, 2), (4, 4, 2)]
    assert b"toy-ocr" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    run.finish("done")
    assert any(artifact.path.startswith("tensorboard/") for artifact in run.manifest().artifacts)
