"""Accelerate's trackers, each opened as its library needs: folder, run to continue, pictures."""

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
from flowopd_cli.system.redact import is_secret_name

PROJECT = "flowopd"
PICTURES = "samples"
TIMEOUT = 30  # seconds that a server may take to answer


@dataclass(frozen=True)
class RunInfo:
    """A run as a tracker sees it, without secrets; ``identity`` stays the same when it is resumed after ``done``."""

    run: RunDir
    name: str
    identity: str
    config: dict[str, str | int | float | bool]
    recipe: str
    done: int

    @classmethod
    def of(cls, run: RunDir, recipe: Recipe, done: int) -> RunInfo:
        """The record of ``run``."""
        manifest = run.manifest()
        birth = f"{manifest.run_id} {manifest.created} {run.path.resolve()}"
        identity = hashlib.sha256(birth.encode()).hexdigest()[:12]
        config = _flat(recipe.model_dump(mode="json"))
        return cls(run, manifest.run_id, identity, config, redacted(dump(recipe)), done)


class Tracker:
    """One of accelerate's trackers, opened with the recipe logged; ``where`` is the place of its curves."""

    where: str
    tracker: Any

    def figures(self, row: Mapping[str, float], iteration: int) -> None:
        """Log a point for each figure."""
        self.tracker.log(dict(row), step=iteration)

    def picture(self, file: Path, iteration: int) -> None:
        """Log a PNG of sample pictures."""
        import numpy as np

        from flowopd_cli.system.pictures import read_picture

        self._log(np.asarray(read_picture(file)), iteration)

    def _log(self, pixels: Any, iteration: int) -> None:
        """Log a picture, bytes (height, width, 3)."""
        self.tracker.log_images({PICTURES: [pixels]}, step=iteration)

    def close(self) -> None:
        """Send what is left."""
        self.tracker.finish()


class TensorBoard(Tracker):
    """Curves and pictures in the run's own ``tensorboard/``; those after the checkpoint of a resumed run are purged."""

    def __init__(self, info: RunInfo) -> None:
        from accelerate.tracking import TensorBoardTracker

        purge = {"purge_step": info.done + 1} if info.done else {}
        self.tracker = TensorBoardTracker("", str(info.run.tensorboard_dir), **purge)
        self.tracker.start()
        self.tracker.log({"recipe": f"```yaml\n{info.recipe}```"}, step=info.done)
        self.where = f"tensorboard --logdir {info.run.tensorboard_dir}"

    def _log(self, pixels: Any, iteration: int) -> None:
        self.tracker.log_images({PICTURES: pixels[None]}, step=iteration, dataformats="NHWC")


class WandB(Tracker):
    """A run of Weights & Biases under the run's identity. Console, code, git state and host are not sent."""

    def __init__(self, info: RunInfo) -> None:
        import wandb  # pyright: ignore[reportMissingImports]
        from accelerate.tracking import WandBTracker

        if os.environ.get("WANDB_MODE") not in {"offline", "disabled"} and not wandb.login(prompt=False):
            raise RuntimeError("no login: run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline")
        private = {"console": "off", "disable_git": True, "save_code": False, "x_save_requirements": False}
        private |= {"x_disable_meta": True, "x_disable_machine_info": True}
        settings = wandb.Settings(silent=True, init_timeout=TIMEOUT, finish_timeout=TIMEOUT, **private)
        info.run.trackers_dir.mkdir(parents=True, exist_ok=True)
        folder = os.environ.get("WANDB_DIR") or str(info.run.trackers_dir)
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        identity = {"id": info.identity, "name": info.name, "resume": "allow", "dir": folder}
        self.tracker = WandBTracker(project, settings=settings, **identity)
        self.tracker.start()
        self.tracker.store_init_configuration(info.config)
        run = self.tracker.run
        self.where = f"offline, in {folder}; send it with: wandb sync" if run.offline else run.url


class MLflow(Tracker):
    """A run of the experiment ``flowopd`` (``MLFLOW_EXPERIMENT_NAME``) at ``MLFLOW_TRACKING_URI``.

    The server gives it an id, which a file in the run directory holds for a resumed run.
    """

    def __init__(self, info: RunInfo) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
        import mlflow  # pyright: ignore[reportMissingImports]
        from accelerate.tracking import MLflowTracker

        note = info.run.trackers_dir / "mlflow.json"
        earlier = read_json(note, "note of MLflow's run").get("run_id") if note.is_file() else None
        self.tracker = MLflowTracker(PROJECT, run_id=earlier, run_name=info.name)
        self.tracker.start()
        run_id = self.tracker.active_run.info.run_id
        if earlier is None:
            atomic_write(note, json.dumps({"run_id": run_id}))
            self.tracker.store_init_configuration(info.config)
        self.where = f"run {run_id} at {redacted(mlflow.get_tracking_uri())}"

    def _log(self, pixels: Any, iteration: int) -> None:  # accelerate's tracker logs no pictures
        import mlflow  # pyright: ignore[reportMissingImports]

        mlflow.log_image(pixels, key=PICTURES, step=iteration, synchronous=True)


class Trackio(Tracker):
    """A run of trackio's project ``flowopd``, on this machine, or in the Space that ``TRACKIO_SPACE_ID`` names."""

    def __init__(self, info: RunInfo) -> None:
        from accelerate.tracking import TrackioTracker

        name = f"{info.name}-{info.identity[:6]}"
        self.tracker = TrackioTracker(PROJECT, name=name, resume="allow", config=info.config, embed=False)
        self.tracker.start()
        self.where = f"trackio show --project {PROJECT}"

    def _log(self, pixels: Any, iteration: int) -> None:  # accelerate's tracker logs no pictures
        import trackio  # pyright: ignore[reportMissingImports]

        self.tracker.log({PICTURES: trackio.Image(pixels)}, step=iteration)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def open_tracker(name: str, info: RunInfo) -> Tracker:
    """Open the tracker called ``name``. Errors are its library's own."""
    from accelerate.state import PartialState

    PartialState()  # accelerate's trackers read it
    return TRACKERS[name](info)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A recipe's fields by dotted names; lists of values as text; secrets as ``***``."""
    nested = isinstance(tree, Mapping) or (isinstance(tree, list) and any(isinstance(v, Mapping | list) for v in tree))
    if nested:
        parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {k: v for key, inner in parts for k, v in _flat(inner, f"{path}.{key}".lstrip(".")).items()}
    if is_secret_name(path.rpartition(".")[2]):
        return {path: "***"}
    text = ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)
    return {path: tree if isinstance(tree, bool | int | float) else redacted(text)}
