"""Adapter references: a run directory, an adapter folder, ``hub:<repo>@<revision>``, or ``base``. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.adapter_header import CONFIG, DIFFUSERS_WEIGHTS, PEFT_WEIGHTS, recorded_in_weights
from flowopd_cli.models.files.peft_config import read_config
from flowopd_cli.runs.manifest import ADAPTER, MANIFEST, Base, Parent, is_run, read_manifest, status_now
from flowopd_cli.system.files import CHECKSUMS, is_intact, is_sealed, sha256_files
from flowopd_cli.system.paths import is_dir, is_file, is_hub_id, is_revision

LONGEST = 4096
FILES = (CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS, CHECKSUMS)  # of an adapter's folder, as far as they are read


@dataclass(frozen=True)
class AdapterRef:
    """Where an adapter is: ``location`` is a path, a Hub repository, or empty for the bare base."""

    text: str
    kind: Literal["run", "folder", "hub", "base"]
    location: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Read a reference as it stands in a recipe. Whether anything is there, ``check`` and ``resolve`` say.

        Raises:
            ArtifactError: the reference is empty or no name, or a Hub reference is not ``hub:<owner>/<name>``.
        """
        text = text.strip()
        if not text:
            raise ArtifactError("an adapter reference is empty: name a run, an adapter folder, hub:<repo>, or base")
        if len(text) > LONGEST or not text.isprintable():
            raise ArtifactError(f"{text[:80]!r} names no adapter: it is too long, or holds what no name holds")
        if text == "base":
            return cls(text, "base")
        if text.startswith("hub:"):
            repo, at, revision = text.removeprefix("hub:").partition("@")
            if not is_hub_id(repo) or (at and not is_revision(revision)):
                raise ArtifactError(f"{text}: write it as hub:<owner>/<name> or hub:<owner>/<name>@<revision>")
            return cls(text, "hub", repo, revision or None)
        return cls(text, "run" if is_run(Path(text)) else "folder", text)

    @property
    def absent(self) -> bool:
        """Whether it names a local place where nothing is yet."""
        return self.kind == "folder" and not os.path.lexists(self.location)

    def check(self) -> None:
        """Refuse a local reference that has no adapter; a Hub reference is only looked up by ``resolve``."""
        if self.kind != "hub":
            self.resolve()

    def resolve(self) -> Path | None:
        """The folder with the adapter's files, fetched first when it is on the Hub; ``None`` for the base.

        Raises:
            ArtifactError: there is nothing, no adapter in it, or one whose files are not those that were written.
        """
        if self.kind == "base":
            return None
        folder = self._fetch() if self.kind == "hub" else self._local()
        if is_sealed(folder) and not is_intact(folder):
            raise ArtifactError(
                f"{self.text}: its adapter is damaged (a file in {folder} is not as it was written); take another copy"
            )
        return folder

    def _local(self) -> Path:
        path = Path(self.location)
        if not is_dir(path):
            raise ArtifactError(f"{self.text}: no such run directory or adapter folder")
        if self.kind == "run":
            if _has_adapter(path / ADAPTER):
                return path / ADAPTER
            status = status_now(path)
            raise ArtifactError(f"{self.text}: this run has no adapter (its status is {status}); finish it first")
        if not _has_adapter(path):
            raise ArtifactError(f"{self.text}: neither a run nor an adapter folder (no {CONFIG} in it)")
        return path

    def base(self) -> Base | None:
        """The base model this adapter was trained on, where a local record says; see :func:`recorded_base`."""
        return None if self.kind in {"base", "hub"} else recorded_base(Path(self.location))

    def base_sha256(self) -> str | None:
        """Digest of the base model this adapter was trained on, where a local record has it."""
        recorded = self.base()
        return None if recorded is None else recorded.sha256

    def shape(self) -> dict[str, Any]:
        """``rank``, ``alpha`` and ``targets`` of a local adapter in PEFT form, as far as its configuration says."""
        folder = Path(self.location)
        folder = folder / ADAPTER if self.kind == "run" else folder
        if self.kind in {"base", "hub"} or not is_file(folder / CONFIG):
            return {}
        config = read_config(folder / CONFIG)
        found: dict[str, Any] = {} if config.rank is None else {"rank": config.rank}
        if config.alpha is not None and config.alpha.is_integer() and config.alpha > 0:
            found["alpha"] = int(config.alpha)
        return found | ({"targets": config.targets} if config.targets and not config.target_pattern else {})

    def sha256(self) -> str | None:
        """Digest of the adapter's weights; ``None`` for the base."""
        return _digest(self.resolve())

    def parent(self, role: str, folder: Path | None = None) -> Parent:
        """The entry that a manifest's ``parents`` holds for this adapter; ``folder`` is it, resolved already."""
        return Parent(role=role, ref=self.text, sha256=_digest(folder or self.resolve()))

    def _fetch(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            wanted = [MANIFEST, *(f"{folder}{name}" for folder in ("", f"{ADAPTER}/") for name in FILES)]
            root = Path(snapshot_download(self.location, revision=self.revision, allow_patterns=wanted))
        except Exception as error:
            raise ArtifactError(f"{self.text}: cannot be fetched ({one_line(error)})") from error
        for folder in (root, root / ADAPTER):
            if _has_adapter(folder):
                return folder
        raise ArtifactError(f"{self.text}: no adapter in this repository (no {CONFIG})")


def recorded_base(folder: Path | None) -> Base | None:
    """The base that an adapter says it was trained on; ``None`` where nothing is recorded.

    ``folder`` is a run or holds the adapter's files, as :meth:`AdapterRef.resolve` gives it (``None``: the bare base).
    The record is the manifest of the run, else the adapter's own configuration and weights.
    """
    if folder is None:
        return None
    folder = folder.resolve()
    for place in (folder.parent, folder) if folder.name == ADAPTER else (folder, folder / ADAPTER):
        found = read_manifest(place).base if is_run(place) else _base_in_files(place)
        if found is not None:
            return found
    return None


def _base_in_files(folder: Path) -> Base | None:
    if not is_file(folder / CONFIG):
        return None
    config = read_config(folder / CONFIG)
    sha = config.base_sha256 or recorded_in_weights(folder / PEFT_WEIGHTS)
    return Base(ref=config.base or "", sha256=sha) if config.base or sha else None


def _digest(folder: Path | None) -> str | None:
    return None if folder is None else sha256_files(folder.glob("*.safetensors"))


def _has_adapter(folder: Path) -> bool:
    return any(is_file(folder / name) for name in (CONFIG, DIFFUSERS_WEIGHTS))
