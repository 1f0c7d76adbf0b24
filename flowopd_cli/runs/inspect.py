"""List runs, and verify one against its manifest. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli import __version__
from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import TrainedRecipe, digest
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.layout import resume_command
from flowopd_cli.runs.manifest import Artifact, Manifest, Parent, is_run, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_intact, is_sealed, sha256_file
from flowopd_cli.system.paths import below, is_dir, is_file


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
    """A row for each run in ``root`` and its sub-folders, oldest first; a damaged one says so under ``status``.

    Raises:
        ArtifactError: there is no such folder.
    """
    if not is_dir(root):
        raise ArtifactError(f"{root}: no such folder")
    rows = [_row(path) for path in _run_paths(root)]
    return sorted(rows, key=lambda row: (row["created"], row["run"]))


def standing(path: Path) -> str:
    """The status of the run at ``path``, ``absent`` where there is nothing but a lock at most,
    ``unbegun`` where it ended before its recipe was written.

    Raises:
        ArtifactError: there is something else, or a damaged manifest.
    """
    if not RunDir(path, writes=False).used():
        return "absent"
    run = RunDir.open(path, writes=False)
    status = status_now(path)
    return status if status in {"done", "running"} or is_file(run.recipe_file) else "unbegun"


def verify(path: Path) -> Iterator[Finding]:
    """Check everything that the manifest of a run names: files, checkpoints, input adapters.

    Raises:
        ArtifactError: there is no run at ``path``, or its manifest is damaged.
    """
    run = RunDir.open(path, writes=False)
    manifest = run.manifest()
    yield Finding("status", manifest.status, _unfinished(run, manifest))
    yield from _check_recipe(run, manifest)
    yield from (_check_file(run, artifact) for artifact in manifest.artifacts)
    yield from (_check_folder("checkpoint", run, run.checkpoints.path(step)) for step in run.checkpoints.steps())
    adapters = [folder for folder in (run.adapter_dir, run.best_dir) if is_sealed(folder)]
    yield from (_check_folder("adapter", run, folder) for folder in adapters)
    yield from (_check_parent(parent) for parent in manifest.parents)


def _run_paths(root: Path) -> Iterator[Path]:
    # the folders of a run are not searched
    for path, folders, _ in os.walk(root):
        with suppress(ArtifactError):  # a folder that may not be looked into
            if is_run(Path(path)):
                folders.clear()
                yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _row(path: Path) -> dict[str, Any]:
    try:
        run = RunDir.open(path, writes=False)
        manifest = run.manifest()
    except FlowOPDError:
        return {"run": str(path), "stage": "?", "status": "damaged", "created": "", "finished": None, "figures": {}}
    return {
        "run": str(path),
        "stage": manifest.stage,
        "status": status_now(path),
        "created": manifest.created,
        "finished": manifest.finished,
        "figures": _figures(manifest.metrics),
    }


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and abs(value) < 1e300}


def _unfinished(run: RunDir, manifest: Manifest) -> str:
    if manifest.status != "running" or status_now(run.path) == "running":
        return ""
    return f"its process is gone; go on with: {resume_command(manifest.stage, run.path)}"


def _check_recipe(run: RunDir, manifest: Manifest) -> Iterator[Finding]:
    try:
        recipe, rows = run.recipe(), run.rows()
    except FlowOPDError as error:
        yield Finding("recipe", run.recipe_file.name, str(error))
        return
    changed = manifest.code_version == __version__ and digest(recipe) != manifest.recipe_sha  # versions add fields
    yield Finding("recipe", run.recipe_file.name, "is not the one that this run began with" if changed else "")
    if isinstance(recipe, TrainedRecipe) and rows:
        logged = [row.get("iteration") for row in rows]
        whole = logged == list(range(1, len(logged) + 1))
        yield Finding("metrics", run.metrics_file.name, "" if whole else "does not have each iteration once")


def _check_folder(kind: str, run: RunDir, folder: Path) -> Finding:
    name, hint = folder.relative_to(run.path).as_posix(), "; --resume takes the one before it"
    return Finding(
        kind, name, "" if is_intact(folder) else f"damaged or incomplete{hint if kind == 'checkpoint' else ''}"
    )


def _check_file(run: RunDir, artifact: Artifact) -> Finding:
    try:
        path = below(run.path, artifact.path)
        if not is_file(path):
            return Finding("file", artifact.path, "missing")
        if path.stat().st_size != artifact.bytes:
            return Finding("file", artifact.path, f"has {path.stat().st_size} bytes, not {artifact.bytes}")
        changed = "" if sha256_file(path) == artifact.sha256 else "its content has changed"
        return Finding("file", artifact.path, changed)
    except ArtifactError:
        return Finding("file", artifact.path, "lies outside the run")
    except OSError as error:
        return Finding("file", artifact.path, f"cannot be read ({error.strerror})")


def _check_parent(parent: Parent) -> Finding:
    name = f"{parent.role} {parent.ref}"
    try:
        reference = AdapterRef.parse(parent.ref)
        if reference.kind == "hub":
            return Finding("parent", name)  # on the Hub its revision names it
        now = reference.resolve().sha256
    except ArtifactError as error:
        return Finding("parent", name, str(error))
    except OSError as error:
        return Finding("parent", name, f"cannot be read ({error.strerror})")
    return Finding("parent", name, "" if now == parent.sha256 else "is another adapter than the one this run used")
