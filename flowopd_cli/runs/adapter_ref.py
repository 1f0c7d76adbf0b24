"""Adapter references: a run, an adapter folder or file, ``hub:<repo>@<revision>``, or ``base``. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files import full_weights
from flowopd_cli.models.files.adapter_header import (
    CONFIG,
    DIFFUSERS_WEIGHTS,
    PEFT_WEIGHTS,
    AdapterHeader,
    read_adapter_header,
    recorded_in_weights,
    weights_file,
)
from flowopd_cli.models.files.full_weights import WeightsHeader, is_full, read_weights_header, weights_files
from flowopd_cli.models.files.peft_config import read_config
from flowopd_cli.models.files.targets import short_names
from flowopd_cli.runs.layout import BEST
from flowopd_cli.runs.manifest import ADAPTER, MANIFEST, Base, Parent, is_run, read_manifest, status_now
from flowopd_cli.system.files import (
    CHECKSUMS,
    combined_sha256,
    is_dir,
    is_file,
    is_sealed,
    sha256_file,
    verified_digests,
)
from flowopd_cli.system.paths import is_hub_id, is_revision

LONGEST = 4096
WITHOUT_ADAPTER = ("eval", "push")  # stages that make none
SAFETENSORS, HUB = ".safetensors", "https://huggingface.co/"
# The files of an adapter, or of a fully trained transformer, that are read.
FILES = (CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS, CHECKSUMS)
FILES += (full_weights.CONFIG, full_weights.WEIGHTS, full_weights.SHARDS)


@dataclass(frozen=True)
class AdapterRef:
    """A parsed reference: ``location`` is a path, a Hub repository, or empty for the bare base."""

    text: str
    kind: Literal["run", "folder", "hub", "base"]
    location: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Parse a reference; :class:`ArtifactError` if malformed. Only :meth:`resolve` requires that it exists."""
        text = text.strip()
        if not text:
            raise ArtifactError(
                "an adapter reference is empty: name a run, an adapter's folder or file, hub:<repo>, or base"
            )
        if len(text) > LONGEST or not text.isprintable():
            raise ArtifactError(f"{text[:80]!r} is not an adapter reference: too long, or unprintable characters")
        if text == "base":
            return cls(text, "base")
        if text.startswith("hub:"):
            repo, at, revision = text.removeprefix("hub:").partition("@")
            if not is_hub_id(repo) or (at and not is_revision(revision)):
                raise ArtifactError(f"{text}: write it as hub:<owner>/<name> or hub:<owner>/<name>@<revision>")
            return cls(text, "hub", repo, revision or None)
        path = Path(text)
        if is_full(path.parent) and path in weights_files(path.parent):  # which are read with all that is beside them
            return cls(text, "folder", str(path.parent))
        return cls(text, "run" if is_run(path) else "folder", text)

    @property
    def absent(self) -> bool:
        """Whether it names a local path that does not exist."""
        return self.kind == "folder" and not os.path.lexists(self.location)

    def shape(self) -> dict[str, Any]:
        """Fields of a recipe's ``adapter`` section that follow from a local adapter; empty if none can be read.

        They are ``rank``, ``alpha`` and ``targets`` of LoRA in either form, ``kind`` of a full model.
        """
        if self.kind in {"run", "folder"} and is_full(self._folder):
            return {"kind": "full"}
        header = self.header()
        if header is None:
            return {}
        fields: dict[str, Any] = {"rank": header.rank, "targets": header.targets or short_names(header.pairs)}
        return fields | ({"alpha": int(header.alpha)} if header.alpha.is_integer() and header.alpha > 0 else {})

    def header(self) -> AdapterHeader | None:
        """The header of a local LoRA in either form, not verified; ``None`` if none can be read."""
        if self.kind in {"base", "hub"}:
            return None
        with suppress(ArtifactError):
            return read_adapter_header(self._folder)
        return None

    @property
    def _folder(self) -> Path:
        return Path(self.location, *([ADAPTER] if self.kind == "run" else []))

    def resolve(self) -> Adapter:
        """The adapter, downloaded if it is on the Hub; :class:`ArtifactError` if it is missing or has changed."""
        if self.kind == "base":
            return Adapter(self, None)
        folder = self._fetch() if self.kind == "hub" else self._local()
        digests = verified_digests(folder) if is_dir(folder) and is_sealed(folder) else {}
        if digests is None:
            raise ArtifactError(
                f"{self.text}: the adapter is damaged (a file in {folder} has changed); use another copy"
            )
        return Adapter(self, folder, digests)

    def _local(self) -> Path:
        path, is_run_dir = Path(self.location), self.kind == "run"
        if is_file(path):
            if path.suffix != SAFETENSORS:
                raise ArtifactError(
                    f"{self.text}: is not a safetensors file, nor a folder; pickled weights are not read"
                )
            return path
        if not is_dir(path):
            raise ArtifactError(f"{self.text}: no such run directory, adapter folder or file{self.hub_hint}")
        folder = path / ADAPTER if is_run_dir else path
        if _has_adapter(folder):
            return folder
        if is_run_dir:
            manifest = read_manifest(path)
            if manifest.stage in WITHOUT_ADAPTER:
                used = [parent.ref for parent in manifest.parents if parent.ref != "base"]
                way_out = f"; name the adapter that it used: {used[0]}" if used else ""
                raise ArtifactError(f"{self.text}: is a run of {manifest.stage}, which makes no adapter{way_out}")
            raise ArtifactError(f"{self.text}: this run has no adapter (status {status_now(path)}); finish it first")
        raise ArtifactError(f"{self.text}: neither a run nor an adapter folder (no {CONFIG} in it)")

    @property
    def hub_hint(self) -> str:
        """The end of a message on a missing path: the reference to a repository, if it may be meant; else empty."""
        repo, at, revision = self.location.removeprefix(HUB).partition("@")
        is_repo = is_hub_id(repo) and not repo.startswith("runs/")  # where runs are by default
        return f"; an adapter on the Hub is written hub:{repo}{at}{revision}" if is_repo else ""

    def _fetch(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            patterns = [MANIFEST, *(f"{folder}{name}" for folder in ("", f"{ADAPTER}/") for name in FILES)]
            root = Path(snapshot_download(self.location, revision=self.revision, allow_patterns=patterns))
        except Exception as error:
            raise ArtifactError(f"{self.text}: cannot be fetched ({one_line(error)})") from error
        folder = next(filter(_has_adapter, (root, root / ADAPTER)), None)
        if folder is None:
            raise ArtifactError(
                f"{self.text}: no adapter in this repository (no {CONFIG}, no {DIFFUSERS_WEIGHTS}): a file of another "
                "program is read if you download it and name it"
            )
        return folder


@dataclass(frozen=True)
class Adapter:
    """A resolved reference: the folder of the adapter's files, or its one file; ``None`` for the bare base.

    A folder may have all weights of a transformer instead, which is a :attr:`full` model. ``digests`` has the SHA-256
    of verified files. Headers and digest are read once.
    """

    ref: AdapterRef
    path: Path | None
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def header(self) -> AdapterHeader | None:
        """Configuration, names and shapes; ``None`` for the base and for a full model.

        Raises as :func:`read_adapter_header`.
        """
        return None if self.path is None or is_full(self.path) else read_adapter_header(self.path)

    @cached_property
    def full(self) -> WeightsHeader | None:
        """Names and shapes of a full model; ``None`` for any other. Raises as :func:`read_weights_header`."""
        return read_weights_header(self.path) if self.path is not None and is_full(self.path) else None

    @cached_property
    def sha256(self) -> str | None:
        """Digest of the adapter's weights; ``None`` for the base. A file that is named has the same under any name."""
        if self.path is None:
            return None
        if is_file(self.path):
            name = PEFT_WEIGHTS if self.path.name == PEFT_WEIGHTS else DIFFUSERS_WEIGHTS
            return combined_sha256({name: sha256_file(self.path)})
        files = self.path.glob(f"*{SAFETENSORS}")
        return combined_sha256({file.name: self.digests.get(file.name) or sha256_file(file) for file in files})

    @cached_property
    def base(self) -> Base | None:
        """The base model that the adapter was trained on; see :func:`recorded_base`."""
        return recorded_base(self.path)

    def parent(self, role: str, base: Base | None = None) -> Parent:
        """This adapter as a parent in a manifest, with its ``base`` if that is not the run's."""
        return Parent(role=role, ref=self.ref.text, sha256=self.sha256, base=base)


class Adapters:
    """The adapters of one command: each reference is resolved, verified and hashed once."""

    def __init__(self) -> None:
        self._resolved: dict[str, Adapter] = {}

    def __getitem__(self, ref: str) -> Adapter:
        """The adapter of a reference; raises as :meth:`AdapterRef.parse` and :meth:`AdapterRef.resolve`."""
        reference = AdapterRef.parse(ref)
        if reference.text not in self._resolved:
            self._resolved[reference.text] = reference.resolve()
        return self._resolved[reference.text]


def recorded_base(folder: Path | None) -> Base | None:
    """The base that an adapter was trained on, by its run's manifest, else by its configuration and weights.

    ``folder`` is a run, an adapter folder or a file of one, ``None`` the bare base. ``None`` where nothing is recorded.
    """
    if folder is None:
        return None
    folder = folder.resolve()
    if folder.name in {PEFT_WEIGHTS, DIFFUSERS_WEIGHTS}:
        folder = folder.parent
    places = (folder.parent, folder) if folder.name == ADAPTER else (folder, folder / ADAPTER)
    bases = (read_manifest(place).base if is_run(place) else _base_in_files(place) for place in places)
    return next(filter(None, bases), None)


def run_of(folder: Path) -> Path | None:
    """The run that ``folder`` is, or whose adapter it is; ``None`` if there is none."""
    place = folder.resolve()
    run = place.parent if place.name in {ADAPTER, BEST} and is_run(place.parent) else place
    return run if is_run(run) else None


def _base_in_files(folder: Path) -> Base | None:
    if is_full(folder):
        header = read_weights_header(folder)
        return Base(ref=header.base or "", sha256=header.base_sha256) if header.base or header.base_sha256 else None
    if not is_file(folder / CONFIG):
        return None
    config = read_config(folder / CONFIG)
    sha = config.base_sha256 or recorded_in_weights(folder / PEFT_WEIGHTS)
    return Base(ref=config.base or "", sha256=sha) if config.base or sha else None


def _has_adapter(folder: Path) -> bool:
    return is_full(folder) or weights_file(folder) is not None
