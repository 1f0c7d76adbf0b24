"""The files of a run directory. No torch here."""

from __future__ import annotations

import secrets
import shlex
from datetime import datetime
from pathlib import Path

from flowopd_cli.runs.manifest import ADAPTER, MANIFEST

RECIPE, METRICS, BEST = "recipe.yaml", "metrics.jsonl", "best"
CHECKPOINTS, SAMPLES, EVAL, HUB, TENSORBOARD = "checkpoints", "samples", "eval", "hub", "tensorboard"
IMAGES, DRAWN, SCORED = "images", "drawn.json", ".scored"
REPORT, CARD, SAMPLE_PROMPTS = "report.html", "README.md", "prompts.json"
EVENTS, FAULTS, TRACKERS = "events.jsonl", "faults", "trackers"
# What --force removes, the manifest last: a folder without it is not a run.
OURS = (
    *(RECIPE, METRICS, ADAPTER, BEST, CHECKPOINTS, SAMPLES, EVAL, HUB, IMAGES, TENSORBOARD, TRACKERS),
    *(REPORT, CARD, EVENTS, FAULTS, MANIFEST),
)
UNRECORDED = {MANIFEST, CHECKPOINTS, IMAGES, REPORT, TRACKERS}  # never among the artifacts


class _Member:
    """A path below the run's own."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts

    def __get__(self, run: RunPaths, owner: type | None = None) -> Path:
        return run.path.joinpath(*self.parts)


class RunPaths:
    """The paths of one run, which need not exist."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    recipe_file = _Member(RECIPE)  # the resolved recipe
    metrics_file = _Member(METRICS)  # one JSON object for each logged iteration
    events_file = _Member(EVENTS)  # one JSON object for each skipped optimizer step, warning and early end
    faults_dir = _Member(FAULTS)  # the rows of optimizer steps that were not finite
    adapter_dir = _Member(ADAPTER)  # the trained adapter in PEFT form
    best_dir = _Member(BEST)  # the adapter of the best checkpoint, with train.keep_best or train.stop
    samples_dir = _Member(SAMPLES)  # pictures drawn during the training
    sample_prompts_file = _Member(SAMPLES, SAMPLE_PROMPTS)  # prompt and seed of each picture in a row of samples
    eval_dir = _Member(EVAL)  # one JSON file for each evaluated suite
    scored_dir = _Member(EVAL, SCORED)  # rows of scored pictures, a file for each process, until an evaluation ends
    images_dir = _Member(IMAGES)  # the pictures of an evaluation, a folder for each suite in its official layout
    hub_dir = _Member(HUB)  # the folder that push uploads
    tensorboard_dir = _Member(TENSORBOARD)  # the curves of train.track: tensorboard
    trackers_dir = _Member(TRACKERS)  # files of the other trackers; they are no artifacts of the run
    report_file = _Member(REPORT)  # the self-contained report
    card_file = _Member(CARD)  # the model card

    def eval_file(self, suite: str, part: str = "") -> Path:
        """The results of one suite; ``part`` names one of several guidances."""
        return self.eval_dir / f"{part_name(suite, part)}.json"

    def samples(self) -> list[tuple[int, Path]]:
        """The sample pictures by iteration, in order."""
        return sorted((int(file.stem), file) for file in self.samples_dir.glob("*.png") if file.stem.isdecimal())

    def sample_file(self, iteration: int) -> Path:
        """The sample pictures of one iteration."""
        return self.image_file(f"{iteration:06d}")

    def image_file(self, name: str) -> Path:
        """The sample picture called ``name``."""
        return self.samples_dir / f"{name.removesuffix('.png')}.png"


def part_name(name: str, part: str) -> str:
    """A name with that of a part of the evaluation, as in ``ocr.guidance-1.5``; with an empty one it is unchanged."""
    return f"{name}.{part}" if part else name


def resume_command(stage: str, path: Path) -> str:
    """The command line that resumes a run."""
    return f"flowopd {stage} --resume {shlex.quote(str(path))}"


def fresh_path(stage: str) -> Path:
    """An unused name below ``runs/``."""
    return Path("runs") / f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
