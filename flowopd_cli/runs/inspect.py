"""List runs, and verify one against its manifest. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError, UnreadableError
from flowopd_cli.recipe import TrainedRecipe, digest, read
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.layout import resume_command
from flowopd_cli.runs.manifest import Artifact, Manifest, Parent, is_run, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_dir, is_file, is_intact, is_sealed, sha256_file
from flowopd_cli.system.paths import below


@dataclass(frozen=True)
class Finding:
    """A checked file, checkpoint or parent, and its fault, empty if there is none."""

    kind: str
    name: str
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.fault


def listing(root: Path) -> list[dict[str, Any]]:
    """A row for each run in ``root`` and its sub-folders, oldest first.

    The status of one without a sound manifest is ``damaged`` or ``unreadable``.
    """
    if not is_dir(root):
        raise ArtifactError(f"{root}: no such folder")
    rows: list[dict[str, Any]] = []
    for path, folders, _ in os.walk(root):
        with suppress(ArtifactError):  # of a folder that cannot be accessed
            if is_run(Path(path)):
                folders.clear()  # the folders of a run are not searched
                rows.append(_row(Path(path)))
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(rows, key=lambda row: (row["created"], row["run"]))


def standing(path: Path) -> str:
    """The status of the run at ``path``; ``absent`` without one, ``unbegun`` if it has no recipe yet."""
    if not RunDir(path, writes=False).used():
        return "absent"
    run = RunDir.open(path, writes=False)
    status = status_now(path)
    return status if status in {"done", "running"} or is_file(run.recipe_file) else "unbegun"


def verify(path: Path) -> Iterator[Finding]:
    """Check everything that the manifest of a run names: files, checkpoints, input adapters."""
    run = RunDir.open(path, writes=False)
    manifest = run.manifest()
    dead = manifest.status == "running" and status_now(path) != "running"
    resume = f"its process is gone; resume it with: {resume_command(manifest.stage, path)}"
    yield Finding("status", manifest.status, resume if dead else "")
    yield from _check_recipe(run, manifest)
    yield from (Finding("file", artifact.path, _fault_of_file(run, artifact)) for artifact in manifest.artifacts)
    for folder in map(run.checkpoints.path, run.checkpoints.steps()):
        fault = _fault_of_folder(folder, "; --resume takes the one before it")
        yield Finding("checkpoint", folder.relative_to(path).as_posix(), fault)
    for folder in filter(is_sealed, (run.adapter_dir, run.best_dir)):
        yield Finding("adapter", folder.name, _fault_of_folder(folder))
    yield from (
        Finding("parent", f"{parent.role} {parent.ref}", _fault_of_parent(parent)) for parent in manifest.parents
    )


def _row(path: Path) -> dict[str, Any]:
    try:
        manifest = RunDir.open(path, writes=False).manifest()
    except FlowOPDError as error:
        status = "unreadable" if isinstance(error, UnreadableError) else "damaged"
        return {"run": str(path), "stage": "?", "status": status, "created": "", "finished": None, "figures": {}}
    figures = {name: v for name, v in manifest.metrics.items() if isinstance(v, int | float) and abs(v) < 1e300}
    fields = manifest.model_dump(include={"stage", "created", "finished"})
    return {"run": str(path), **fields, "status": status_now(path), "figures": figures}


def _check_recipe(run: RunDir, manifest: Manifest) -> Iterator[Finding]:
    try:
        recipe, rows = run.recipe(), run.rows()
    except FlowOPDError as error:
        yield Finding("recipe", run.recipe_file.name, str(error))
        return
    changed = digest(read(run.recipe_file)) != manifest.recipe_sha  # the file itself: versions add fields
    yield Finding("recipe", run.recipe_file.name, "is not the recipe that this run began with" if changed else "")
    if isinstance(recipe, TrainedRecipe) and rows:
        first = 0 if rows[0].get("iteration") == 0 else 1  # a watch at the start has a row
        complete = [row.get("iteration") for row in rows] == list(range(first, first + len(rows)))
        yield Finding("metrics", run.metrics_file.name, "" if complete else "does not have each iteration once")


def _fault_of_folder(folder: Path, consequence: str = "") -> str:
    try:
        return "" if is_intact(folder) else f"damaged or incomplete{consequence}"
    except UnreadableError as error:
        return str(error)


def _fault_of_file(run: RunDir, artifact: Artifact) -> str:
    try:
        path = below(run.path, artifact.path)
        if not is_file(path):
            return "missing"
        if path.stat().st_size != artifact.bytes:
            return f"has {path.stat().st_size} bytes, not {artifact.bytes}"
        return "" if sha256_file(path) == artifact.sha256 else "its content has changed"
    except ArtifactError:
        return "is outside the run"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _fault_of_parent(parent: Parent) -> str:
    try:
        reference = AdapterRef.parse(parent.ref)
        if reference.kind == "hub":  # its revision identifies it
            return ""
        return "" if reference.resolve().sha256 == parent.sha256 else "is another adapter than the one this run used"
    except ArtifactError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
