"""Where the files of a run are: with the manifest, the only place that knows what they are called. No torch here."""

from __future__ import annotations

import secrets
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from flowopd_cli.runs.manifest import ADAPTER, MANIFEST

RECIPE, METRICS, BEST = "recipe.yaml", "metrics.jsonl", "best"
CHECKPOINTS, SAMPLES, EVAL, HUB, TENSORBOARD = "checkpoints", "samples", "eval", "hub", "tensorboard"
IMAGES, DRAWN, SCORED = "images", "drawn.json", ".scored"
REPORT, CARD, SAMPLE_PROMPTS = "report.html", "README.md", "prompts.json"
EVENTS, FAULTS, TRACKERS = "events.jsonl", "faults", "trackers"
OURS = (RECIPE, METRICS, ADAPTER, BEST, CHECKPOINTS, SAMPLES, EVAL, HUB, IMAGES, TENSORBOARD, TRACKERS)
OURS = (*OURS, REPORT, CARD, EVENTS, FAULTS, MANIFEST)  # the manifest goes last: without it nothing is a run
UNRECORDED = {MANIFEST, CHECKPOINTS, IMAGES, REPORT, TRACKERS}  # among no run's artifacts


class Picture(Protocol):
    """What a run needs of a PIL picture."""

    def save(self, fp: Any, format: str | None = None) -> None:
        """Encode the picture into an open file."""
        ...


class RunPaths:
    """The paths of one run, whether there is anything or not."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / RECIPE

    @property
    def metrics_file(self) -> Path:
        """One JSON object per logged step."""
        return self.path / METRICS

    @property
    def events_file(self) -> Path:
        """One JSON object for each skipped optimizer step and each warning of a training."""
        return self.path / EVENTS

    @property
    def faults_dir(self) -> Path:
        """What a training that met numbers that are not finite left to look at."""
        return self.path / FAULTS

    @property
    def adapter_dir(self) -> Path:
        """The trained adapter in PEFT form."""
        return self.path / ADAPTER

    @property
    def best_dir(self) -> Path:
        """The adapter of the best checkpoint, with ``train.keep_best``."""
        return self.path / BEST

    @property
    def samples_dir(self) -> Path:
        """Pictures drawn on the way."""
        return self.path / SAMPLES

    @property
    def eval_dir(self) -> Path:
        """One JSON file per evaluated suite."""
        return self.path / EVAL

    @property
    def scored_dir(self) -> Path:
        """Rows of pictures that are scored already, a file for each process, until an evaluation is through."""
        return self.eval_dir / SCORED

    @property
    def images_dir(self) -> Path:
        """The pictures of an evaluation, a folder for each suite in its official layout."""
        return self.path / IMAGES

    @property
    def hub_dir(self) -> Path:
        """The folder that push uploads."""
        return self.path / HUB

    @property
    def tensorboard_dir(self) -> Path:
        """The curves of ``train.track: tensorboard``."""
        return self.path / TENSORBOARD

    @property
    def trackers_dir(self) -> Path:
        """What the other trackers keep of the run: their own business, and no part of its record."""
        return self.path / TRACKERS

    @property
    def report_file(self) -> Path:
        """The self-contained report."""
        return self.path / REPORT

    @property
    def card_file(self) -> Path:
        """The model card."""
        return self.path / CARD

    @property
    def sample_prompts_file(self) -> Path:
        """Prompt and seed of each picture in a row of samples."""
        return self.samples_dir / SAMPLE_PROMPTS

    def eval_file(self, suite: str) -> Path:
        """Where the results of one suite go."""
        return self.eval_dir / f"{suite}.json"

    def samples(self) -> list[tuple[int, Path]]:
        """The sample pictures that are there, each with its iteration, in order."""
        found = self.samples_dir.glob("*.png") if self.samples_dir.is_dir() else ()
        return sorted((int(file.stem), file) for file in found if file.stem.isdecimal())

    def sample_file(self, iteration: int) -> Path:
        """The sample pictures of one iteration."""
        return self.image_file(f"{iteration:06d}")

    def image_file(self, name: str) -> Path:
        """Where a picture called ``name`` goes."""
        return self.samples_dir / f"{name.removesuffix('.png')}.png"


def go_on(stage: str, path: Path) -> str:
    """The command line that goes on with a run."""
    return f"flowopd {stage} --resume {shlex.quote(str(path))}"


def fresh_path(stage: str) -> Path:
    """A name under ``runs/`` that nobody has taken."""
    return Path("runs") / f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
