"""Run directories: the only place that knows what the files of a run are called. No torch here.

``recipe.yaml`` (resolved), ``manifest.json``, ``metrics.jsonl``, ``adapter/``, ``checkpoints/step-000100/``,
``samples/``, ``eval/<suite>.json``, ``tensorboard/``, ``README.md``, ``report.html``.
"""

from __future__ import annotations

import io
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from flowopd_cli import __version__, files
from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.files import Lock, atomic_write, plain, sha256_file
from flowopd_cli.json_files import read_json_lines
from flowopd_cli.manifest import (
    ADAPTER,
    MANIFEST,
    Artifact,
    Base,
    Manifest,
    Parent,
    Status,
    environment,
    is_run,
    now,
    read_manifest,
)
from flowopd_cli.paths import is_dir
from flowopd_cli.refs import AdapterRef

__all__ = ["AdapterRef", "Base", "Manifest", "Parent", "RunDir", "fresh_path", "is_run"]

RECIPE, METRICS, LOCK = "recipe.yaml", "metrics.jsonl", ".lock"
CHECKPOINTS, SAMPLES, EVAL, HUB, TENSORBOARD = "checkpoints", "samples", "eval", "hub", "tensorboard"
IMAGES, DRAWN, SCORED = "images", "drawn.json", ".scored"
REPORT, CARD = "report.html", "README.md"
OURS = (RECIPE, MANIFEST, METRICS, ADAPTER, CHECKPOINTS, SAMPLES, EVAL, HUB, IMAGES, TENSORBOARD, REPORT, CARD)


class Picture(Protocol):
    """What a run needs of a PIL picture."""

    def save(self, fp: Any, format: str | None = None) -> None:
        """Encode the picture into an open file."""
        ...


class RunDir:
    """One run's directory. With ``writes=False`` (ranks above 0, references) every writing method does nothing."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._lock = Lock(self.path / LOCK)

    @classmethod
    def create(cls, out: Path | None, stage: str, *, force: bool = False) -> RunDir:
        """A new directory, locked for this process: ``out``, or a fresh ``runs/<stage>-<time>-<hex>``.

        Raises:
            ArtifactError: it has something in it and ``force`` is not set, or it is no run, or it cannot be made.
        """
        run = cls(fresh_path(stage) if out is None else out)
        try:
            run._occupy(stage, force=force)
        except OSError as error:
            raise ArtifactError(f"{run.path}: cannot be written ({error.strerror}); choose another --out") from error
        return run

    @classmethod
    def open(cls, path: str | Path, *, writes: bool = True) -> RunDir:
        """An existing run, to resume or to read.

        Raises:
            ArtifactError: there is no run at ``path``, or its manifest is damaged.
        """
        run = cls(path, writes=writes)
        if not is_dir(run.path):
            raise ArtifactError(f"{path}: no such directory")
        if not is_run(run.path):
            raise ArtifactError(f"{path}: not a run directory (it has no {MANIFEST})")
        run.manifest()
        return run

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / RECIPE

    @property
    def metrics_file(self) -> Path:
        """One JSON object per logged step."""
        return self.path / METRICS

    @property
    def adapter_dir(self) -> Path:
        """The trained adapter in PEFT form."""
        return self.path / ADAPTER

    @property
    def checkpoints_dir(self) -> Path:
        """What resuming needs."""
        return self.path / CHECKPOINTS

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
    def report_file(self) -> Path:
        """The self-contained report."""
        return self.path / REPORT

    @property
    def card_file(self) -> Path:
        """The model card."""
        return self.path / CARD

    def eval_file(self, suite: str) -> Path:
        """Where the results of one suite go."""
        return self.eval_dir / f"{suite}.json"

    def image_file(self, name: str) -> Path:
        """Where a picture called ``name`` goes."""
        return self.samples_dir / f"{name.removesuffix('.png')}.png"

    def checkpoint_dir(self, step: int) -> Path:
        """Where the checkpoint of one step goes."""
        return self.checkpoints_dir / f"step-{step:06d}"

    def manifest(self) -> Manifest:
        """The manifest as it is on disk."""
        return read_manifest(self.path)

    def recipe(self, overrides: Sequence[str] = ()) -> recipes.Recipe:
        """The resolved recipe that this run was started with, under ``--set`` overrides."""
        return recipes.load(self.recipe_file, overrides=overrides)

    def start(self, recipe: recipes.Recipe) -> None:
        """Lock the run and write its recipe and manifest; a resumed run keeps its id, birth and parents."""
        if not self.writes:
            return
        self._lock.acquire()
        atomic_write(self.recipe_file, recipes.dump(recipe))
        changes = {"status": "running", "recipe_sha": recipes.digest(recipe), "finished": None}
        changes |= {"code_version": __version__, "environment": environment()}
        if is_run(self.path):
            self._write(self.manifest().model_copy(update=changes))
            return
        fixed = {"run_id": self.path.resolve().name, "stage": recipe.stage, "created": now()}
        self._write(Manifest.model_validate(fixed | changes))

    def set_parents(self, parents: Sequence[Parent | Mapping[str, Any]]) -> None:
        """Record the adapters that this run is made from: ``role``, ``ref`` and ``sha256`` of each."""
        self._update(parents=tuple(Parent.model_validate(parent) for parent in parents))

    def set_base(self, ref: str, sha256: str | None) -> None:
        """Record the base model and the digest of its transformer, where that is known."""
        self._update(base=Base(ref=ref, sha256=sha256))

    def finish(self, status: Status, metrics: Mapping[str, Any] | None = None) -> None:
        """Close the run: digest what it made, set its status, and give the lock back."""
        if not self.writes:
            return
        merged = {**self.manifest().metrics, **plain(metrics or {})}
        self._update(status=status, metrics=merged, finished=now(), artifacts=self._artifacts())
        self._lock.release()

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the metrics; figures that are not finite become null."""
        if not self.writes:
            return
        with self.metrics_file.open("a", encoding="utf-8") as handle:
            handle.write(files.json_lines([plain(row)]))
            handle.flush()

    def write_eval(self, suite: str, text: str) -> None:
        """Write the results of one suite, JSON text."""
        if self.writes:
            atomic_write(self.eval_file(suite), text)

    def write_rows(self, suite: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one line of JSON for each picture that a suite scored."""
        if self.writes:
            atomic_write(self.eval_dir / f"{suite}.jsonl", files.json_lines(rows))

    def write_image(self, name: str, image: Picture) -> None:
        """Write a PIL picture among the samples, as PNG."""
        if self.writes:
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            atomic_write(self.image_file(name), buffer.getvalue())

    def rows(self) -> list[dict[str, Any]]:
        """The logged rows; a last line torn by a crash is left out."""
        return read_json_lines(self.metrics_file)

    def truncate_metrics(self, step: int) -> None:
        """Drop rows whose ``iteration`` (else ``step``) is after ``step``: a resumed run logs each exactly once."""
        if self.writes and self.metrics_file.is_file():
            kept = [row for row in self.rows() if (row.get("iteration", row.get("step")) or 0) <= step]
            atomic_write(self.metrics_file, files.json_lines(kept))

    def save_checkpoint(self, step: int, writer: Callable[[Path], None], keep: int) -> None:
        """Let ``writer`` fill the checkpoint of ``step`` atomically, then keep the newest ``keep``."""
        if not self.writes:
            return
        files.commit_folder(self.checkpoint_dir(step), writer)
        files.remove_staging(self.checkpoints_dir)
        for old in sorted(self._checkpoints())[:-keep]:
            shutil.rmtree(self.checkpoint_dir(old), ignore_errors=True)

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """The newest undamaged checkpoint and its step, if there is one."""
        for step in sorted(self._checkpoints(), reverse=True):
            if files.is_intact(self.checkpoint_dir(step)):
                return step, self.checkpoint_dir(step)
        return None

    def _occupy(self, stage: str, *, force: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ArtifactError(f"{self.path}: is a file; --out names a directory")
        used = self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir())
        if used and not force:
            raise ArtifactError(
                f"{self.path}: is not empty; continue it with --resume {self.path}, replace it with --force, "
                f"or give --out a fresh name such as {fresh_path(stage)}"
            )
        if used and not is_run(self.path):
            raise ArtifactError(f"{self.path}: --force replaces runs only, and this directory is not one")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        for name in OURS if used else ():
            files.remove(self.path / name)

    def _checkpoints(self) -> list[int]:
        names = (path.name for path in self.checkpoints_dir.glob("step-*") if path.is_dir())
        return [int(match[1]) for match in (re.fullmatch(r"step-(\d+)", name) for name in names) if match]

    def _artifacts(self) -> tuple[Artifact, ...]:
        left_out = {MANIFEST, LOCK, CHECKPOINTS, IMAGES}
        named = ((p.relative_to(self.path), p) for p in sorted(self.path.rglob("*")) if p.is_file())
        return tuple(
            Artifact(path=name.as_posix(), sha256=sha256_file(path), bytes=path.stat().st_size)
            for name, path in named
            if name.parts[0] not in left_out
        )

    def _update(self, **changes: Any) -> None:
        if self.writes:
            self._write(self.manifest().model_copy(update=changes))

    def _write(self, manifest: Manifest) -> None:
        atomic_write(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def fresh_path(stage: str) -> Path:
    """A name under ``runs/`` that nobody has taken."""
    return Path("runs") / f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
