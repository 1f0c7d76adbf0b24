"""Where weights come from: a local path, a pinned Hub file, or a URL whose digest is checked. No pickle is trusted.

A pickled checkpoint is read with ``weights_only=True``, and only when its sha256 has been stated: here, by the Hub for
a pinned commit, or by the user, who writes ``file.pt#sha256=...``.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.rewards.remote.digests import file_digest
from flowopd_cli.system.paths import cache_dir

CHUNK = 1 << 20
TIMEOUT = 60.0
COMMIT, DIGEST = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_STATED = re.compile(r"(?P<source>.+)#sha256=(?P<digest>[0-9a-f]{64})", re.DOTALL)


class Weights(NamedTuple):
    """A file of weights, and what its sha256 is known to begin with; ``None`` where nothing is known."""

    path: Path
    sha256: str | None = None


def split_digest(source: str) -> tuple[str, str | None]:
    """``source#sha256=digest`` in two; a source without a digest as it is."""
    found = _STATED.fullmatch(source)
    return (found["source"], found["digest"]) if found else (source, None)


def pick_device(device: str = "auto") -> str:
    """``auto`` is the GPU where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def hub_file(repo: str, filename: str, *, revision: str | None = None) -> Weights:
    """A file of a Hub repository, or of a local folder of that name. At a pinned commit the Hub vouches for its digest.

    Raises:
        ArtifactError: it is neither there nor reachable.
    """
    if Path(repo).is_dir():
        path = Path(repo) / filename
        if not path.is_file():
            raise ArtifactError(f"{repo}: no file {filename} in this folder")
        return Weights(path)
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repo, filename, revision=revision))
    except Exception as error:
        reason = one_line(error)[:300]
        raise ArtifactError(f"{repo}/{filename}: cannot be fetched ({reason}); or name a local folder") from error
    blob = path.resolve().name  # large files lie in the Hub's cache under their sha256
    return Weights(path, blob if revision and COMMIT.fullmatch(revision) and DIGEST.fullmatch(blob) else None)


def download(url: str, *, sha256: str | None, name: str | None = None) -> Path:
    """A file from a URL, kept in the cache. ``sha256`` may be a prefix of the digest; ``None`` trusts nothing but TLS.

    Raises:
        ArtifactError: it cannot be fetched, or is not the file that was expected.
    """
    if not url.startswith("https://") and sha256 is None:
        raise ArtifactError(f"{url}: is not fetched without https:// unless its digest is stated (URL#sha256=...)")
    target = cache_dir() / "weights" / (name or _file_name(url))
    if target.is_file() and (sha256 is None or file_digest(target).startswith(sha256)):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "wb") as sink, urllib.request.urlopen(url, timeout=TIMEOUT) as source:
            shutil.copyfileobj(source, sink, CHUNK)
            size = source.headers.get("Content-Length")
        if size is not None and Path(partial).stat().st_size != int(size):
            raise OSError(f"it broke off after {Path(partial).stat().st_size} of {size} bytes")
        found = file_digest(Path(partial))
        if sha256 is not None and not found.startswith(sha256):
            raise ArtifactError(f"{url}: sha256 is {found}, expected {sha256}; the file was not kept")
        os.replace(partial, target)
    except OSError as error:
        raise ArtifactError(f"{url}: cannot be fetched ({error}); download it yourself and name its path") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return target


def _file_name(url: str) -> str:
    name = re.sub(r"[^\w.+-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])
    if not name.strip("."):
        raise ArtifactError(f"{url}: names no file")
    return name


def refuse_unpinned(path: Path, sha256: str | None, name: str | None = None) -> None:
    """Refuse a pickled checkpoint whose digest nobody stated, or that is another file; ``name`` is what the user wrote.

    Raises:
        ArtifactError: with the digest that it has.
    """
    found = file_digest(path)
    if sha256 is None:
        raise ArtifactError(
            f"{name or path}: a pickled checkpoint whose sha256 nobody stated: if you trust it, write "
            f"{name or path}#sha256={found}, or convert it to .safetensors"
        )
    if not found.startswith(sha256):
        raise ArtifactError(f"{name or path}: sha256 is {found}, expected {sha256}")


def load_tensors(path: str | Path, sha256: str | None = None, name: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a PyTorch checkpoint of this digest read with ``weights_only=True``.

    ``{"state_dict": ...}`` and ``{"model": ...}`` wrappers are opened. ``name`` is what the user called the file.

    Raises:
        ArtifactError: the file is missing, is neither, holds something other than tensors, or is a pickle whose digest
            nobody stated.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file of weights")
    if path.suffix != ".safetensors":
        refuse_unpinned(path, sha256, name)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path}: cannot be read as weights ({str(error).splitlines()[0]})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping):
        raise ArtifactError(f"{path}: holds {type(tree).__name__}, not named tensors")
    return {name: value for name, value in tree.items() if isinstance(value, Tensor)}


def refuse_mismatch(what: str, missing: list[str], unexpected: list[str], misshaped: list[str]) -> None:
    """Refuse weights whose names or shapes are not those of the model.

    Raises:
        ArtifactError: names the first of each kind.
    """
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    parts = [f"{len(names)} {kind} (first {names[0]})" for kind, names in found.items() if names]
    if parts:
        raise ArtifactError(f"{what}: these are not its weights: {', '.join(parts)}")
