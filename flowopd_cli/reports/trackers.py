"""Accelerate's trackers, each told what its library asks for: where to write, which run to go on with, pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import redacted
from flowopd_cli.recipe import Recipe, dump
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import is_file
from flowopd_cli.system.redact import is_secret_name

PROJECT = "flowopd"
PICTURES = "samples"
SECONDS = 30  # that a server may take to answer


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a run: its name, an identity that a resumed run keeps, its recipe, where to write.

    ``done`` iterations are behind it. No secret is in ``config`` or ``recipe``.
    """

    name: str
    identity: str
    folder: Path
    curves: Path
    config: dict[str, str | int | float | bool]
    recipe: str
    done: int


def told_of(run: RunDir, recipe: Recipe, done: int) -> Told:
    """What there is to tell of a run."""
    manifest = run.manifest()
    born = f"{manifest.run_id} {manifest.created} {run.path.resolve()}"
    identity = hashlib.sha256(born.encode()).hexdigest()[:12]
    config = _flat(recipe.model_dump(mode="json"))
    folder, curves = run.trackers_dir, run.tensorboard_dir
    return Told(manifest.run_id, identity, folder, curves, config, redacted(dump(recipe)), done)


def open_board(name: str, told: Told) -> Board:
    """The tracker called ``name``, open. What it raises is its library's own."""
    from accelerate.state import PartialState

    PartialState()  # accelerate's trackers ask it who they are
    board = BOARDS[name](told)
    board.open()
    return board


class Board:
    """One of accelerate's trackers."""

    where = ""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.tracker: Any = None

    def open(self) -> None:
        """Start it, and log the recipe."""
        raise NotImplementedError

    def figures(self, row: Mapping[str, float], iteration: int) -> None:
        """One point for each figure."""
        self.tracker.log(dict(row), step=iteration)

    def picture(self, file: Path, iteration: int) -> None:
        """A sample picture."""
        self.tracker.log_images({PICTURES: [_pixels(file)]}, step=iteration)

    def close(self) -> None:
        """Send what is left."""
        self.tracker.finish()


class TensorBoard(Board):
    """Curves and pictures in the run's own ``tensorboard/``; those after the checkpoint of a resumed run are purged."""

    def open(self) -> None:
        """A fresh file of events."""
        from accelerate.tracking import TensorBoardTracker

        told = self.told
        purge = {"purge_step": told.done + 1} if told.done else {}
        self.tracker = TensorBoardTracker("", str(told.curves), **purge)
        self.tracker.start()
        self.tracker.log({"recipe": f"```yaml\n{told.recipe}```"}, step=told.done)
        self.where = f"tensorboard --logdir {told.curves}"

    def picture(self, file: Path, iteration: int) -> None:
        """As one picture; the library takes stacks of them."""
        self.tracker.log_images({PICTURES: _pixels(file)[None]}, step=iteration, dataformats="NHWC")


class WandB(Board):
    """A run of Weights & Biases whose id is the run's identity. It sends neither console, code, git state nor host."""

    def open(self) -> None:
        """Log in without a question, then start or go on."""
        import wandb
        from accelerate.tracking import WandBTracker

        told = self.told
        quiet = {"silent": True, "console": "off", "init_timeout": SECONDS, "finish_timeout": SECONDS}
        private = {"disable_git": True, "save_code": False, "x_disable_meta": True, "x_disable_machine_info": True}
        private["x_save_requirements"] = False
        if os.environ.get("WANDB_MODE") not in {"offline", "disabled"} and not wandb.login(prompt=False):
            raise RuntimeError("no login: run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline")
        told.folder.mkdir(parents=True, exist_ok=True)
        started = {"id": told.identity, "name": told.name, "resume": "allow", "dir": os.environ.get("WANDB_DIR")}
        started["dir"] = started["dir"] or str(told.folder)
        settings = wandb.Settings(**quiet, **private)
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self.tracker = WandBTracker(project, settings=settings, **started)
        self.tracker.start()
        self.tracker.store_init_configuration(told.config)
        run = self.tracker.run
        self.where = f"offline, in {started['dir']}; send it with: wandb sync" if run.offline else run.url


class MLflow(Board):
    """A run of the experiment ``flowopd`` (``MLFLOW_EXPERIMENT_NAME``) at ``MLFLOW_TRACKING_URI``.

    Its id is the server's; it is kept in the run directory, so that a resumed run goes on with it.
    """

    def open(self) -> None:
        """Start a run, or go on with the one that is noted."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS))
        import mlflow
        from accelerate.tracking import MLflowTracker

        told, noted = self.told, self.told.folder / "mlflow.json"
        known = read_json(noted, "note of MLflow's run").get("run_id") if is_file(noted) else None
        self.tracker = MLflowTracker(PROJECT, run_id=known, run_name=told.name)
        self.tracker.start()
        run_id = self.tracker.active_run.info.run_id
        if known is None:
            atomic_write(noted, json.dumps({"run_id": run_id}))
            self.tracker.store_init_configuration(told.config)
        self.where = f"run {run_id} at {redacted(mlflow.get_tracking_uri())}"

    def picture(self, file: Path, iteration: int) -> None:
        """Accelerate's tracker has no pictures: by the library's own call, into the run that it started."""
        import mlflow

        mlflow.log_image(_pixels(file), key=PICTURES, step=iteration, synchronous=True)


class Trackio(Board):
    """A run of trackio's project ``flowopd``, on this machine, or in the Space that ``TRACKIO_SPACE_ID`` names."""

    def open(self) -> None:
        """Start a run, or go on with the one of this name."""
        from accelerate.tracking import TrackioTracker

        told = self.told
        name = f"{told.name}-{told.identity[:6]}"
        self.tracker = TrackioTracker(PROJECT, name=name, resume="allow", config=told.config, embed=False)
        self.tracker.start()
        self.where = f"trackio show --project {PROJECT}"

    def picture(self, file: Path, iteration: int) -> None:
        """Accelerate's tracker has no pictures: as the library's own kind of value."""
        import trackio

        self.tracker.log({PICTURES: trackio.Image(_pixels(file))}, step=iteration)


BOARDS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def _pixels(file: Path) -> Any:
    """A PNG as bytes (height, width, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as opened:
        return np.asarray(opened.convert("RGB"))


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A recipe's fields by dotted names; lists of values as text; what looks like a secret is starred out."""
    if isinstance(tree, Mapping):
        parts = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(value, Mapping | list) for value in tree):
        parts = [(str(index), value) for index, value in enumerate(tree)]
    elif is_secret_name(path.rpartition(".")[2]):
        return {path: "***"}
    else:
        return {path: tree if isinstance(tree, bool | int | float) else redacted(_text(tree))}
    return {name: value for key, inner in parts for name, value in _flat(inner, f"{path}.{key}".lstrip(".")).items()}


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
