"""Pipeline folders: where one lies, and digests that name what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.json_files import read_json
from flowopd_cli.paths import is_hub_id

WHOLE_FILE_BYTES = 64 * 1024**2
EDGE_BYTES = 1024**2


def locate(pretrained: str | Path, revision: str | None = None) -> Path:
    """The local folder of a pipeline, fetched from the Hub when it is not a folder.

    Raises:
        ArtifactError: it is not an SD3 pipeline, or cannot be fetched.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        folder = _fetch(str(pretrained), revision)
    config = folder / "transformer" / "config.json"
    if not config.is_file():
        raise ArtifactError(f"{pretrained}: not a diffusers pipeline (no transformer/config.json in it)")
    kind = read_json(config, "configuration of a transformer").get("_class_name")
    if kind != "SD3Transformer2DModel":
        raise ArtifactError(f"{pretrained}: its transformer is {kind}, the family sd3 needs SD3Transformer2DModel")
    return folder


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if not is_hub_id(repo):
        raise ArtifactError(f"{repo}: no such folder, and not a Hub id (owner/name): check --base")
    patterns = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = one_line(error)[:200]
        raise ArtifactError(
            f"{repo}: cannot be fetched ({reason}); check the name, `hf auth login`, or give a local folder to --base"
        ) from error


def base_fingerprint(folder: str | Path) -> str:
    """SHA-256 over the transformer's configuration and weight files, without loading them.

    Files above 64 MiB count by their size and their first and last MiB: the header of a safetensors file, which holds
    every name, shape and offset, and real weights at both ends.
    """
    files = sorted((locate(folder) / "transformer").iterdir())
    return _digest(path for path in files if path.suffix in {".json", ".safetensors"})


def encoder_identity(folder: Path) -> dict[str, object]:
    """What a pipeline's text encoders and tokenizers are: their classes, and a digest of their files.

    Raises:
        ArtifactError: the folder has no sound ``model_index.json``.
    """
    index = read_json(folder / "model_index.json", "pipeline index")
    parts = {name: kind for name, kind in index.items() if name.startswith(("text_encoder", "tokenizer"))}
    files = (path for name in sorted(parts) for path in sorted((folder / name).glob("*")) if path.is_file())
    return {"parts": parts, "files": _digest(files)}


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, 2)
                digest.update(file.read())
    return digest.hexdigest()
