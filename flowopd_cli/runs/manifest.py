"""The manifest of a run: what it is, what it was made from, what it made. No torch here."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import problems
from flowopd_cli.runs.lock import Lock
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import is_file

MANIFEST, ADAPTER, LOCK = "manifest.json", "adapter", ".lock"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
Status = Literal["running", "done", "failed", "interrupted"]


def _time(text: str) -> str:
    """A time with its zone, as :func:`now` writes it."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without a zone")
    return text


Time = Annotated[str, AfterValidator(_time)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(_Entry):
    """Where a run ran."""

    python: str
    platform: str
    packages: dict[str, str]


class Parent(_Entry):
    """An adapter that a run was made from, the part it played, and the digest of its weights."""

    role: str
    ref: str
    sha256: str | None = None


class Artifact(_Entry):
    """A file of a run, relative to it."""

    path: str
    sha256: str
    bytes: NonNegativeInt


class Base(_Entry):
    """The frozen base model and the digest of its transformer, where that was at hand."""

    ref: str
    sha256: str | None = None


class Inputs(_Entry):
    """What a run is made from; ``prompts`` is the digest of those it trains on."""

    base: Base | None = None
    parents: tuple[Parent, ...] = ()
    prompts: str | None = None


class Manifest(_Entry):
    """What a run is, what it was made from (see :class:`Inputs`) and what it made."""

    run_id: str
    stage: str = Field(pattern=r"^[a-z][a-z_-]{0,40}$")
    status: Status
    recipe_sha: str
    code_version: str
    created: Time
    finished: Time | None = None
    environment: Environment
    parents: tuple[Parent, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    base: Base | None = None
    prompts: str | None = None


def is_run(path: Path) -> bool:
    """Whether a directory is a run."""
    return is_file(path / MANIFEST)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the run at ``path``.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    file = path / MANIFEST
    try:
        return Manifest.model_validate(read_json(file, "manifest"))
    except ValidationError as error:
        raise ArtifactError(f"{file}: damaged manifest ({problems(error, Manifest)[0]})") from error


def status_now(path: Path) -> Status:
    """The status of the run at ``path``; one that was killed while it was running is interrupted.

    Raises:
        ArtifactError: it has no manifest, or a damaged one.
    """
    status = read_manifest(path).status
    return "interrupted" if status == "running" and not Lock(path / LOCK).taken() else status


def environment() -> Environment:
    """The interpreter, the system and the versions of the packages that matter."""
    versions = {name: _version(name) for name in PACKAGES}
    packages = {name: version for name, version in versions.items() if version is not None}
    return Environment(python=platform.python_version(), platform=platform.platform(), packages=packages)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
