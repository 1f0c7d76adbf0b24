"""The manifest of a run: its identity, its inputs and its files. No torch here."""

from __future__ import annotations

import platform
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import ModelSpec, faults
from flowopd_cli.runs.lock import Lock
from flowopd_cli.system.files import is_file
from flowopd_cli.system.json_files import read_json

MANIFEST, ADAPTER, LOCK = "manifest.json", "adapter", ".lock"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
Status = Literal["running", "done", "failed", "interrupted"]


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without a zone")
    return text


Time = Annotated[str, AfterValidator(_time)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Record = TypeVar("Record", bound=_Entry)


class Environment(_Entry):
    """Interpreter, system and packages of a run."""

    python: str
    platform: str
    packages: dict[str, str]


class Base(_Entry):
    """The frozen base model and the digest of its transformer's files, if known; its bits if it was quantized."""

    ref: str
    sha256: str | None = None
    quantize: str | None = None

    @property
    def label(self) -> str:
        """The reference, and the bits of a quantized base."""
        return f"{self.ref} in {self.quantize}" if self.quantize else self.ref

    @classmethod
    def of(cls, spec: ModelSpec, sha256: str) -> Base:
        """The base of a recipe's ``model`` section."""
        return cls(ref=spec.pretrained, sha256=sha256, quantize=None if spec.quantize == "none" else spec.quantize)


class Parent(_Entry):
    """An input adapter of a run: its role, its reference, the digest of its weights, and its base if not the run's."""

    role: str
    ref: str
    sha256: str | None = None
    base: Base | None = None


class Artifact(_Entry):
    """A file of a run, relative to it."""

    path: str
    sha256: str
    bytes: NonNegativeInt


class Inputs(_Entry):
    """The inputs of a run; ``prompts`` is the digest of those it trains on."""

    base: Base | None = None
    parents: tuple[Parent, ...] = ()
    prompts: str | None = None


class Manifest(Inputs):
    """A run's identity, inputs, status and results."""

    run_id: str
    stage: str = Field(pattern=r"^[a-z][a-z_-]{0,40}$")
    status: Status
    recipe_sha: str
    code_version: str
    created: Time
    finished: Time | None = None
    environment: Environment
    artifacts: tuple[Artifact, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)


def is_run(path: Path) -> bool:
    """Whether a directory is a run."""
    return is_file(path / MANIFEST)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the run at ``path``; :class:`ArtifactError` if it is missing or damaged."""
    return read_record(path / MANIFEST, Manifest, "manifest")


def read_record(file: Path, kind: type[Record], what: str) -> Record:
    """A record in a JSON file; :class:`ArtifactError` if it is missing or damaged. ``what`` names it."""
    try:
        return kind.model_validate(read_json(file, what))
    except ValidationError as error:
        raise ArtifactError(f"{file}: damaged {what} ({faults(error, kind)[0]})") from error


def status_now(path: Path) -> Status:
    """The status of the run at ``path``; one that was killed while it was running is interrupted."""
    status = read_manifest(path).status
    return "interrupted" if status == "running" and not Lock(path / LOCK).taken() else status


def environment() -> Environment:
    """The interpreter, the system and the versions of the packages that matter."""
    packages = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return Environment(python=platform.python_version(), platform=platform.platform(), packages=packages)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
