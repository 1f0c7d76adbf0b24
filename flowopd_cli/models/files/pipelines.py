"""Pipeline folders: their place, configurations and digests. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import is_hub_id

CONFIG = "transformer/config.json"
FILES = ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja")
# Lists in autoencoders' configurations with an entry for each level of resolution, and how many levels halve no side.
LEVELS = {"block_out_channels": 1, "encoder_block_out_channels": 1, "temperal_downsample": 0}
TRANSFORMER_FILES = ("*.json", "transformer/*.json", "transformer/*.safetensors")
AUTOENCODER_FILES = ("*.json", "*/*.json", "vae/*.safetensors")
WHOLE_FILE_BYTES = 64 * 1024**2
EDGE_BYTES = 1024**2
# Files any of which has the whole vocabulary of a tokenizer.
VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)


def locate(
    pretrained: str | Path,
    revision: str | None = None,
    transformer: str | None = None,
    files: Sequence[str] = FILES,
    *,
    fetch: bool = True,
) -> Path:
    """The local folder of a pipeline, whose ``files`` are fetched from the Hub if it is not a folder.

    ``transformer`` is the required class of its transformer, checked before weights are fetched. Without ``fetch``
    only the Hub's cache is read.

    Raises :class:`ArtifactError`: it is not such a pipeline, or cannot be fetched.
    """
    folder, repo = Path(pretrained), str(pretrained)
    local = folder.is_dir()
    if not local:
        if not is_hub_id(repo):
            raise ArtifactError(f"{repo}: no such folder, and not a Hub id (owner/name): check --base")
        folder = _fetch(repo, revision, [CONFIG], fetch)
    config = folder / CONFIG
    if not config.is_file():
        raise ArtifactError(f"{pretrained}: not a diffusers pipeline (no {CONFIG} in it)")
    kind = read_json(config, "configuration of a transformer").get("_class_name")
    if transformer is not None and kind != transformer:
        raise ArtifactError(
            f"{pretrained}: its transformer is {kind}, this family's is {transformer}: "
            "name its own with --set model.family=NAME"
        )
    return folder if local else _fetch(repo, revision, files, fetch)


def _fetch(repo: str, revision: str | None, patterns: Sequence[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), local_files_only=not fetch)
        )
    except Exception as error:
        reason = one_line(error)[:200]
        raise ArtifactError(
            f"{repo}: cannot be fetched ({reason}); check the name, `hf auth login`, or give a local folder to --base"
        ) from error


def pixels_per_latent(folder: Path) -> int:
    """The side in pixels of one latent pixel, from the configuration of the autoencoder."""
    config = read_json(folder / "vae" / "config.json", "configuration of an autoencoder")
    for key, whole in LEVELS.items():
        if isinstance(config.get(key), list):
            return 2 ** (len(config[key]) - whole)
    raise ArtifactError(f"{folder}: the configuration of its autoencoder has no {' or '.join(LEVELS)}")


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """``(outputs, inputs)`` of the transformer's linear modules by name, if its weights can be read."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, int]] = {}
    try:
        for path in (folder / "transformer").glob("*.safetensors"):
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    shape = file.get_slice(name).get_shape()
                    if name.endswith(".weight") and len(shape) == 2:
                        shapes[name.removesuffix(".weight")] = (shape[0], shape[1])
    except (OSError, SafetensorError):
        return {}
    return shapes


def absent_parts(folder: Path) -> dict[str, Any]:
    """The arguments without which diffusers refuses a folder that lacks encoders, such as an SD3 without T5."""
    index = read_json(folder / "model_index.json", "pipeline index")
    texts = ("text_encoder", "tokenizer")
    return {name: None for name, kind in index.items() if name.startswith(texts) and kind == [None, None]}


def check_scheduler(folder: Path, kind: str) -> None:
    """Refuse a scheduler of another class than ``kind``, which diffusers would read with its defaults.

    Raises :class:`ArtifactError`: it is of another class, or its configuration is missing or damaged.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    actual = read_json(path, "configuration of a scheduler").get("_class_name", kind)
    if actual != kind:
        raise ArtifactError(
            f"{folder}: its scheduler is {actual}, this family's is {kind}: use a copy of the base with that one's "
            f"{path.name}"
        )


def check_tokenizers(folder: Path) -> None:
    """Refuse a tokenizer without its vocabulary, of which transformers would make one that knows no word.

    Raises :class:`ArtifactError`: files are missing.
    """
    index = read_json(folder / "model_index.json", "pipeline index")
    for name, kind in index.items():
        if not name.startswith("tokenizer") or kind == [None, None]:
            continue
        if not any(all((folder / name / file).is_file() for file in files) for files in VOCABULARIES):
            raise ArtifactError(f"{folder / name}: no vocabulary in it, such as tokenizer.json: fetch the base again")


def base_fingerprint(folder: str | Path) -> str:
    """SHA-256 over the transformer's configuration and weight files, without loading them.

    Files above 64 MiB count by their size and their first and last MiB: the header of a safetensors file, which holds
    every name, shape and offset, and real weights at both ends.
    """
    files = sorted((locate(folder) / "transformer").iterdir())
    return files_digest(path for path in files if path.suffix in {".json", ".safetensors"})


def encoder_identity(folder: Path) -> dict[str, object]:
    """The classes of a pipeline's text encoders and tokenizers, and a digest of their files."""
    index = read_json(folder / "model_index.json", "pipeline index")
    parts = {name: kind for name, kind in index.items() if name.startswith(("text_encoder", "tokenizer"))}
    files = (path for name in sorted(parts) for path in sorted((folder / name).glob("*")) if path.is_file())
    return {"parts": parts, "files": files_digest(files)}


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 over names, sizes and contents of files, of large ones as in :func:`base_fingerprint`."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        with path.open("rb") as file:
            if size > WHOLE_FILE_BYTES:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()
