"""Run directories, from the first write to the last; :mod:`.layout` names their files. No torch here."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopd_cli import __version__
from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, StorageError
from flowopd_cli.runs.checkpoints import Checkpoints, Fill, Regular
from flowopd_cli.runs.layout import CHECKPOINTS, EVAL, OURS, SAMPLES, UNRECORDED, RunPaths, fresh_path, resume_command
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import (
    LOCK,
    MANIFEST,
    Artifact,
    Inputs,
    Manifest,
    Status,
    environment,
    is_run,
    now,
    read_manifest,
)
from flowopd_cli.runs.provenance import Provenance, changed_inputs, refuse
from flowopd_cli.system import files
from flowopd_cli.system.files import atomic_write, is_dir, sha256_file
from flowopd_cli.system.json_files import json_lines, plain, read_json_lines

if TYPE_CHECKING:
    from PIL.Image import Image


class RunDir(RunPaths):
    """One run's directory. With ``writes=False`` (ranks above 0, references) every writing method does nothing."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        super().__init__(path)
        self.writes = writes
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)
        self._lock = Lock(self.path / LOCK)
        self._recipe: recipes.Recipe | None = None
        self._resumed: tuple[Status, Provenance, recipes.Recipe] | None = None  # until the inputs are declared

    @classmethod
    def create(cls, out: Path | None, stage: str, *, force: bool = False) -> RunDir:
        """A new directory, locked for this process: ``out``, or a fresh ``runs/<stage>-<time>-<hex>``.

        A directory that is not empty is an :class:`ArtifactError`, unless it is a run and ``force`` is set; one that
        may not be written is a :class:`StorageError`.
        """
        run = cls(fresh_path(stage) if out is None else out)
        try:
            run._occupy(stage, force=force)
        except StorageError:
            raise
        except OSError as error:
            kind = StorageError if error.errno in files.HELP else ArtifactError
            raise kind(f"{run.path}: cannot be written ({error.strerror}); choose another --out") from error
        return run

    @classmethod
    def open(cls, path: str | Path, *, writes: bool = True) -> RunDir:
        """An existing run; :class:`ArtifactError` if there is none at ``path``, or its manifest is damaged."""
        run = cls(path, writes=writes)
        if not is_dir(run.path):
            raise ArtifactError(f"{path}: no such directory")
        if not is_run(run.path):
            raise ArtifactError(f"{path}: not a run directory (it has no {MANIFEST})")
        run.manifest()
        return run

    def manifest(self) -> Manifest:
        """The manifest as it is on disk."""
        return read_manifest(self.path)

    def recipe(self, overrides: Sequence[str] = ()) -> recipes.Recipe:
        """The resolved recipe that this run was started with, under ``--set`` overrides."""
        return recipes.load(self.recipe_file, overrides=overrides)

    def start(self, recipe: recipes.Recipe) -> None:
        """Lock the run and write its manifest and recipe; a resumed run keeps its id, its creation time and its inputs.

        A run with checkpoints keeps its recipe on disk until :meth:`declare` has found the same inputs.
        """
        if not self.writes:
            return
        self._lock.acquire()
        for folder in (self.path, *(self.path / name for name in (CHECKPOINTS, SAMPLES, EVAL))):
            files.remove_leftovers(folder)
        self._recipe = recipe
        changes = {"status": "running", "finished": None, "code_version": __version__, "environment": environment()}
        changes["recipe_sha"] = recipes.digest(recipe)
        if is_run(self.path):
            before, provenance = self.manifest(), self.checkpoints.provenance()
            if provenance is not None:
                self._resumed = before.status, provenance, recipe
                changes["recipe_sha"] = before.recipe_sha
            self._write(before.model_copy(update=changes))
        else:
            identity = {"run_id": self.path.resolve().name, "stage": recipe.stage, "created": now()}
            self._write(Manifest.model_validate(identity | changes))
        if self._resumed is None:
            atomic_write(self.recipe_file, recipes.dump(recipe))

    def declare(self, inputs: Inputs) -> None:
        """Record the inputs of the run before its first result; a field that is not set keeps its record.

        A resumed run with other inputs than its checkpoint is refused with an :class:`ArtifactError`, and not changed.
        """
        if not self.writes:
            return
        changes: dict[str, Any] = {name: getattr(inputs, name) for name in inputs.model_fields_set}
        if self._resumed is None:
            self._update(**changes)
            return
        _, provenance, recipe = self._resumed
        refuse(self.path, changed_inputs(provenance, inputs))
        self._update(**changes, recipe_sha=recipes.digest(recipe))
        atomic_write(self.recipe_file, recipes.dump(recipe))
        self._resumed = None

    def finish(self, status: Status, metrics: Mapping[str, Any] | None = None) -> None:
        """Close the run: record its status and the digests of its files, and release the lock."""
        if not self.writes:
            return
        if self._resumed is not None and self._resumed[0] != "running":  # a resume that was refused changes nothing
            status = self._resumed[0]
        try:
            merged = {**self.manifest().metrics, **plain(metrics or {})}
            self._update(status=status, metrics=merged, finished=now(), artifacts=self._artifacts())
        finally:
            self._lock.release()

    def delete(self) -> None:
        """Remove the run, and its folder if there is nothing else in it.

        Raises :class:`ArtifactError`: a living process writes it.
        """
        self._lock.acquire()
        try:
            for name in OURS:
                files.remove(self.path / name)
        finally:
            self._lock.release()
        if not self.used():
            files.remove(self.path)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics; figures that are not finite become null."""
        if self.writes:
            files.append(self.metrics_file, json_lines([plain(row)]))

    def log_event(self, iteration: int, kind: str, text: str, **more: Any) -> None:
        """Append a row to the events; ``kind`` is ``skipped``, ``stopped`` or ``warning``."""
        if self.writes:
            files.append(self.events_file, json_lines([{"iteration": iteration, "kind": kind, "text": text, **more}]))

    def events(self) -> list[dict[str, Any]]:
        """The rows of :meth:`log_event`."""
        return read_json_lines(self.events_file)

    def save_fault(self, iteration: int, writer: Callable[[Path], None]) -> Path:
        """Let ``writer`` fill the folder of a fault; returns its path."""
        folder = self.faults_dir / f"iteration-{iteration:06d}"
        if self.writes:
            files.commit_folder(folder, writer)
        return folder

    def write_eval(self, suite: str, text: str, part: str = "") -> None:
        """Write the results of one suite, JSON text."""
        if self.writes:
            atomic_write(self.eval_file(suite, part), text)

    def write_rows(self, suite: str, rows: Sequence[Mapping[str, Any]], part: str = "") -> None:
        """Write a line of JSON for each picture that a suite scored."""
        if self.writes:
            atomic_write(self.eval_file(suite, part).with_suffix(".jsonl"), json_lines(rows))

    def write_image(self, name: str, image: Image) -> None:
        """Write a picture to ``samples/``, as PNG."""
        if self.writes:
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            atomic_write(self.image_file(name), buffer.getvalue())

    def rows(self) -> list[dict[str, Any]]:
        """The logged rows; a last line torn by a crash is left out."""
        return read_json_lines(self.metrics_file)

    def go_back(self, step: int) -> None:
        """Remove the rows and checkpoints after ``step``, to resume from it."""
        if not self.writes:
            return
        self.checkpoints.remove(later for later in self.checkpoints.steps() if later > step)
        for file in (self.metrics_file, self.events_file):
            if file.is_file():
                rows = (row for row in read_json_lines(file) if (row.get("iteration", row.get("step")) or 0) <= step)
                atomic_write(file, json_lines(rows))

    def save_checkpoint(
        self, at: int, fill: Fill, keep: int, best: int | None = None, regular: Regular = lambda step: True
    ) -> None:
        """Sync the logged rows to disk, call ``fill`` to write the checkpoint of step ``at``, and prune older ones.

        The newest ``keep`` and that of step ``best`` stay. A checkpoint that is not ``regular``, such as that of a
        stopped run, stays only while it is the newest.
        """
        if not self.writes:
            return
        self._lock.confirm()
        for file in filter(Path.is_file, (self.metrics_file, self.events_file)):
            files.sync_file(file)
        manifest = self.manifest()
        recipe = {} if self._recipe is None else self._recipe.model_dump(mode="json")
        inputs = {name: getattr(manifest, name) for name in Inputs.model_fields}
        self.checkpoints.save(at, fill, Provenance(**inputs, recipe=recipe, environment=manifest.environment))
        self.checkpoints.prune(keep, also=[best], regular=regular)

    def save_adapter(self, writer: Callable[[Path], None], *, best: bool = False) -> None:
        """Let ``writer`` fill ``adapter/``, or ``best/``, with checksums; the old one stays until then."""
        if self.writes:
            self._lock.confirm()
            files.commit_folder(self.best_dir if best else self.adapter_dir, writer)

    def used(self) -> bool:
        """Whether the directory contains more than a lock and leftovers of killed writers."""
        paths = self.path.iterdir() if is_dir(self.path) else ()
        return any(not path.name.startswith(LOCK) and not files.is_leftover(path) for path in paths)

    def _occupy(self, stage: str, *, force: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ArtifactError(f"{self.path}: is a file; --out names a directory")
        if not self._lock.taken():  # else the lock says who writes it
            self._refuse_used(stage, force=force)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._refuse_used(stage, force=force)  # another command may have come and gone before the lock
            if is_run(self.path):  # one that is killed halfway through this is no finished run
                with suppress(ArtifactError):
                    self._update(status="interrupted", artifacts=(), metrics={})
            for name in OURS if self.used() else ():
                files.remove(self.path / name)
        except BaseException:
            self._lock.release()
            raise

    def _refuse_used(self, stage: str, *, force: bool) -> None:
        if self.used() and not force:
            raise ArtifactError(
                f"{self.path}: is not empty; continue it with {resume_command(stage, self.path)}, replace it with "
                f"--force, or give --out a fresh name such as {fresh_path(stage)}"
            )
        if self.used() and not is_run(self.path):
            raise ArtifactError(f"{self.path}: --force replaces runs only, and this directory is not one")

    def _artifacts(self) -> tuple[Artifact, ...]:
        return tuple(
            Artifact(path=name, sha256=sha256_file(path), bytes=path.stat().st_size)
            for name, path in files.files_below(self.path).items()
            if (parts := name.split("/"))[0] not in UNRECORDED and not any(part.startswith(".") for part in parts)
        )

    def _update(self, **changes: Any) -> None:
        if self.writes:
            self._write(self.manifest().model_copy(update=changes))

    def _write(self, manifest: Manifest) -> None:
        self._lock.confirm()
        atomic_write(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
