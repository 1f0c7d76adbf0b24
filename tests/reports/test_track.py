"""Trackers beside the metrics: each library itself where it is installed, and recording stand-ins of three of them."""

import importlib
import json
import sqlite3
import sys
import time
import types

import pytest
from PIL import Image

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import MissingDependency, RecipeError
from flowopd_cli.reports import track
from flowopd_cli.reports.trackers import RunInfo
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

DATA = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}


class Heard(Silent):
    def __init__(self):
        self.rows, self.notes = [], []

    def step(self, row):
        self.rows.append(row)

    def note(self, text):
        self.notes.append(text)


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
def here(monkeypatch):
    """All packages of trackers count as installed; accelerate has looked for them before there are stand-ins."""
    importlib.import_module("accelerate.tracking")
    monkeypatch.setattr(track, "check_installed", lambda names: None)


def picture(run, iteration):
    run.write_image(f"{iteration:06d}", Image.new("RGB", (4, 2), (iteration, 0, 0)))


def train(run, names, iterations, done=0):
    """What a training says to its listener, with a picture after every second iteration; the listener's notes."""
    heard = Heard()
    progress = track.tracked(recipe(names), run, heard)
    progress.start(10, "teacher", done)
    for iteration in iterations:
        progress.step({"iteration": iteration, "step": 2 * iteration, "reward": iteration / 4, "loss": float("nan")})
        if iteration % 2 == 0:
            picture(run, iteration)
    progress.done()
    assert [row["iteration"] for row in heard.rows] == list(iterations)
    return heard.notes


@pytest.mark.parametrize(
    ("value", "track"),
    [
        ("none", "none"),
        ("tensorboard", "tensorboard"),
        ("[tensorboard, wandb]", "tensorboard,wandb"),
        ("wandb,mlflow,wandb", "wandb,mlflow"),
        ("[]", "none"),
        ("null", "none"),
    ],
)
def test_the_field_takes_one_name_or_several(value, track):
    built = recipe(value)
    assert built.train.track == track
    assert built.train.trackers == (() if track == "none" else tuple(track.split(",")))
    assert recipes.build(built.model_dump(mode="json")) == built


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"train\.track: no tracker 'wanb', did you mean 'wandb'"):
        recipe("wanb")
    with pytest.raises(RecipeError, match="no tracker '3'"):
        recipe("3")


def test_without_the_field_nothing_is_wrapped(run):
    heard = Heard()
    assert track.tracked(recipes.build(DATA), run, heard) is heard
    assert track.tracked(recipe("tensorboard"), RunDir(run.path, writes=False), heard) is heard
    assert track.tracked(recipes.build({"stage": "eval"}), run, heard) is heard


@pytest.mark.parametrize("name", sorted(track.EXTRAS))
def test_the_missing_package_and_its_extra_are_named(monkeypatch, run, name):
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependency, match=rf"{name} is not installed: pip install 'flowopd\[{track.EXTRAS[name]}\]'"
    ):
        track.tracked(recipe(name), run, Silent())
    folder = types.SimpleNamespace(origin=None)
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: folder)
    with pytest.raises(MissingDependency):
        track.check_installed([name])


def test_what_is_told_keeps_its_identity_and_holds_no_secret(run):
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


def test_a_tracker_that_fails_costs_one_warning_and_never_the_run(monkeypatch, run, here):
    class Breaks:
        where = "nowhere"

        def figures(self, row, iteration):
            raise SystemExit("no network\nat all")

    opened = []
    monkeypatch.setattr("flowopd_cli.reports.track.open_tracker", lambda name, info: opened.append(name) or Breaks())
    assert train(run, "wandb", (1, 2, 3)) == [
        "wandb: nowhere",
        "warning: wandb is left out from here on: no network at all; the run goes on",
    ]
    assert opened == ["wandb"]


def test_a_tracker_that_hangs_is_given_up(monkeypatch, run, here):
    class Hangs:
        where = "there"

        def figures(self, row, iteration):
            time.sleep(3)

    monkeypatch.setattr("flowopd_cli.reports.track.open_tracker", lambda name, info: Hangs())
    monkeypatch.setattr(track, "TIMEOUT", 0.05)
    began = time.monotonic()
    assert train(run, "mlflow", (1,))[-1] == "warning: mlflow: not through after 0.05 s; what it has not sent is lost"
    assert time.monotonic() - began < 2


class FakeRun(list):
    """Of wandb, trackio or mlflow: what was logged."""

    url, offline = "https://somewhere/run", False
    info = types.SimpleNamespace(run_id="4711")

    def log(self, values, step=None):
        self.append((step, values))

    def finish(self):
        self.append("finished")


def wandb_of(log, logged_in=True):
    def init(**given):
        log.append(given)
        return run

    run = FakeRun()
    config = types.SimpleNamespace(update=lambda values, allow_val_change: log.append(values))
    module = types.SimpleNamespace(init=init, config=config, Settings=dict, Image=lambda pixels: pixels.shape)
    module.login = lambda prompt: logged_in and not prompt
    return module, run


def test_wandb_is_told_its_run_and_sends_nothing_of_the_machine(monkeypatch, run, here):
    log = []
    module, logged = wandb_of(log)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    picture(run, 2)  # of an iteration that was logged before the resume
    assert train(run, "wandb", (3, 4), done=2) == ["wandb: https://somewhere/run"]
    given, config = log
    assert (given["project"], given["name"], given["resume"]) == ("flowopd", "r", "allow")
    assert given["id"] == RunInfo.of(run, recipe("wandb"), 0).identity
    assert given["dir"] == str(run.trackers_dir)
    assert given["settings"]["console"] == "off"
    assert given["settings"]["x_disable_meta"] is True
    assert config["train.track"] == "wandb"
    assert list(logged) == [
        (3, {"reward": 0.75}),
        (4, {"reward": 1.0}),
        (4, {"samples": [(2, 4, 3)]}),
        "finished",
    ]


def test_wandb_without_a_login_asks_nothing(monkeypatch, run, here):
    module, _ = wandb_of([], logged_in=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (said,) = train(run, "wandb", (1,))
    assert said.startswith("warning: wandb is left out from here on: no login: run `wandb login`, set WANDB_API_KEY")


def test_mlflow_goes_on_with_the_run_that_it_noted(monkeypatch, run, here):
    log = []

    def start_run(**given):
        log.append(("start", given["run_id"], given["run_name"], given["experiment_id"]))
        return FakeRun()

    module = types.SimpleNamespace(
        search_experiments=lambda filter_string: [],
        create_experiment=lambda name, **rest: f"experiment {name}",
        start_run=start_run,
        end_run=lambda: log.append("end"),
        log_metrics=lambda values, step: log.append((step, values)),
        log_params=lambda values: log.append(values),
        log_image=lambda pixels, key, step, synchronous: log.append((step, key, pixels.shape)),
        get_tracking_uri=lambda: "http://me:word@host",
        utils=types.SimpleNamespace(
            validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        ),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    assert train(run, "mlflow", (1, 2)) == ["mlflow: run 4711 at http://***@host"]
    assert log[0] == ("start", None, "r", "experiment flowopd")
    assert log[1]["train.track"] == "mlflow"
    assert log[2:] == [(1, {"reward": 0.25}), (2, {"reward": 0.5}), (2, "samples", (2, 4, 3)), "end"]
    log.clear()
    train(run, "mlflow", (3,), done=2)
    assert log == [("start", "4711", "r", "experiment flowopd"), (3, {"reward": 0.75}), "end"]


def test_trackio_goes_on_by_name(monkeypatch, run, here):
    log, logged = [], FakeRun()
    module = types.SimpleNamespace(init=lambda **given: log.append(given) or logged, Image=lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, "trackio", module)
    train(run, "trackio", (1, 2))
    (given,) = log
    assert (given["project"], given["resume"]) == ("flowopd", "allow")
    assert given["name"].startswith("r-")
    assert given["config"]["train.track"] == "trackio"
    assert list(logged) == [(1, {"reward": 0.25}), (2, {"reward": 0.5}), (2, {"samples": (2, 4, 3)}), "finished"]


def test_tensorboard_itself_reads_curves_pictures_and_recipe(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(run, "tensorboard", (1, 2, 3)) == [f"tensorboard: tensorboard --logdir {run.tensorboard_dir}"]
    train(run, "tensorboard", (2, 3, 4), done=1)
    read = EventAccumulator(str(run.tensorboard_dir))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("reward")] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert read.Tags()["scalars"] == ["reward"]
    assert [(found.step, found.width, found.height) for found in read.Images("samples")] == [(2, 4, 2), (4, 4, 2)]
    assert b"toy-ocr" in read.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    run.finish("done")
    named = [artifact.path for artifact in run.manifest().artifacts]
    assert any(path.startswith("tensorboard/") for path in named)


def test_wandb_itself_writes_a_run_offline(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (said,) = train(run, "wandb", (1, 2))
    assert said == f"wandb: offline, in {run.trackers_dir}; send it with: wandb sync"
    (folder,) = (run.trackers_dir / "wandb").glob("offline-run-*")
    assert folder.name.endswith(RunInfo.of(run, recipe("wandb"), 0).identity)
    assert list(folder.glob("files/media/images/samples_2_*.png"))
    assert not list(folder.rglob("requirements.txt"))
    run.finish("done")
    assert not any(artifact.path.startswith("trackers/") for artifact in run.manifest().artifacts)


def test_mlflow_itself_goes_on_with_its_run(run, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.path.parent}/m.db")
    train(run, "mlflow", (1, 2))
    train(run, "mlflow", (3,), done=2)
    with sqlite3.connect(run.path.parent / "m.db") as store:
        assert store.execute("select name, status from runs").fetchall() == [("r", "FINISHED")]
        found = store.execute("select step, value from metrics where key = 'reward' order by step").fetchall()
    assert found == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_trackio_itself_goes_on_with_its_run(run, monkeypatch):
    pytest.importorskip("trackio")
    folder = run.path.parent / "tio"
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    for module in ("trackio.utils", "trackio.sqlite_storage"):  # they read the variable when they are imported
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", folder, raising=False)
    train(run, "trackio", (1, 2))
    train(run, "trackio", (3,), done=2)
    with sqlite3.connect(folder / "flowopd.db") as store:
        found = store.execute("select distinct run_name, step from metrics order by step").fetchall()
    assert [step for _, step in found] == [1, 2, 3]
    assert len({name for name, _ in found}) == 1
