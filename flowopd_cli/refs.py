"""Adapter references: a run directory, an adapter folder, ``hub:<repo>@<revision>``, or ``base``. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowopd_cli.errors import ArtifactError
from flowopd_cli.files import is_intact, is_sealed, read_json, safetensors_metadata, sha256_files
from flowopd_cli.manifest import ADAPTER, Base, Parent, is_run, read_manifest, status_now

PEFT_CONFIG, DIFFUSERS_WEIGHTS = "adapter_config.json", "pytorch_lora_weights.safetensors"
BASE_KEY, PEFT_WEIGHTS = "base_sha256", "adapter_model.safetensors"


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
            ArtifactError: the reference is empty, or a Hub reference is not ``hub:<owner>/<name>``.
        """
        text = text.strip()
        if not text:
            raise ArtifactError("an adapter reference is empty: name a run, an adapter folder, hub:<repo>, or base")
        if text == "base":
            return cls(text, "base")
        if text.startswith("hub:"):
            repo, _, revision = text.removeprefix("hub:").partition("@")
            if repo.count("/") != 1 or not all(repo.split("/")):
                raise ArtifactError(f"{text}: write it as hub:<owner>/<name> or hub:<owner>/<name>@<revision>")
            return cls(text, "hub", repo, revision or None)
        return cls(text, "run" if is_run(Path(text)) else "folder", text)

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
        if not path.is_dir():
            raise ArtifactError(f"{self.text}: no such run directory or adapter folder")
        if self.kind == "run":
            if _has_adapter(path / ADAPTER):
                return path / ADAPTER
            status = status_now(path)
            raise ArtifactError(f"{self.text}: this run has no adapter (its status is {status}); finish it first")
        if not _has_adapter(path):
            raise ArtifactError(f"{self.text}: neither a run nor an adapter folder (no {PEFT_CONFIG} in it)")
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
        if self.kind in {"base", "hub"} or not (folder / PEFT_CONFIG).is_file():
            return {}
        config = read_json(folder / PEFT_CONFIG, "adapter configuration")
        rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
        found: dict[str, Any] = {"rank": rank} if isinstance(rank, int) else {}
        if isinstance(alpha, int | float) and float(alpha).is_integer():
            found["alpha"] = int(alpha)
        return found | ({"targets": tuple(map(str, targets))} if isinstance(targets, list) else {})

    def sha256(self) -> str | None:
        """Digest of the adapter's weights; ``None`` for the base."""
        return _digest(self.resolve())

    def parent(self, role: str, folder: Path | None = None) -> Parent:
        """The entry that a manifest's ``parents`` holds for this adapter; ``folder`` is it, resolved already."""
        return Parent(role=role, ref=self.text, sha256=_digest(folder or self.resolve()))

    def _fetch(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.safetensors"]
            root = Path(snapshot_download(self.location, revision=self.revision, allow_patterns=patterns))
        except Exception as error:
            raise ArtifactError(f"{self.text}: cannot be fetched ({' '.join(str(error).split())})") from error
        for folder in (root, root / ADAPTER):
            if _has_adapter(folder):
                return folder
        raise ArtifactError(f"{self.text}: no adapter in this repository (no {PEFT_CONFIG})")


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
    if not (folder / PEFT_CONFIG).is_file():
        return None
    config = read_json(folder / PEFT_CONFIG, "adapter configuration")
    name = config.get("base_model_name_or_path")
    sha = config.get(BASE_KEY) or safetensors_metadata(folder / PEFT_WEIGHTS).get(BASE_KEY)
    return Base(ref=str(name or ""), sha256=str(sha) if sha else None) if name or sha else None


def _digest(folder: Path | None) -> str | None:
    return None if folder is None else sha256_files(folder.glob("*.safetensors"))


def _has_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (PEFT_CONFIG, DIFFUSERS_WEIGHTS))
