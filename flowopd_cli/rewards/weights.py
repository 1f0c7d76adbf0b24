"""Weights of rewards: local files, pinned Hub files, checked downloads, and models that several rewards share.

No pickle is trusted: a pickled checkpoint is read with ``weights_only=True``, and only when its SHA-256 is pinned here,
by the Hub at a pinned commit, or by the user, who writes ``file.pt#sha256=...``.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.system.files import sha256_file, storing
from flowopd_cli.system.paths import cache_dir

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
COMMIT, DIGEST = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
Model = TypeVar("Model")
_shared: WeakValueDictionary[Any, Any] = WeakValueDictionary()
_lock = Lock()


class Weights(NamedTuple):
    """A file of weights and its pinned SHA-256, or a prefix of it; ``None`` when it is not pinned."""

    path: Path
    sha256: str | None = None


def split_digest(source: str) -> tuple[str, str | None]:
    """Split ``source#sha256=digest``; the digest of a plain source is ``None``."""
    path, _, digest = source.rpartition("#sha256=")
    return (path, digest) if path and DIGEST.fullmatch(digest) else (source, None)


def path_digest(path: Path) -> str:
    """``sha256:`` and the digest of a file, or of the digests of a folder's weights in the order of their names."""
    if path.is_file():
        return f"sha256:{sha256_file(path)}"
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    return f"sha256:{hashlib.sha256(''.join(map(sha256_file, files)).encode()).hexdigest()}"


def weights_id(source: str | Path) -> str:
    """An identifier of weights: a Hub id unchanged, a local file or folder by its SHA-256."""
    path = Path(split_digest(str(source))[0])
    return path_digest(path) if path.exists() else str(source)


def shared(load: Callable[..., Model], *names: str | None, **options: Any) -> Model:
    """``load(*names, **options)``, or the still-used model of an earlier call with equal arguments."""
    bound = inspect.signature(load).bind(*names, **options)
    bound.apply_defaults()
    key = (load.__module__, load.__qualname__, repr(bound.arguments))
    with _lock:
        model = _shared.get(key)
        if model is None:
            model = _shared[key] = load(*names, **options)
        return model


def pick_device(device: str = "auto") -> str:
    """The device; ``auto`` is the GPU where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def split_revision(name: str) -> tuple[str, str | None]:
    """Split ``repository@revision``; the revision of a folder or of a plain name is ``None``."""
    if Path(name).exists() or "@" not in name:
        return name, None
    repo, _, revision = name.rpartition("@")
    return repo, revision


def weights_file(source: str, filename: str) -> Weights:
    """The file itself, ``filename`` in a local folder, or in a Hub repository ``name@revision``.

    A suffix ``#sha256=digest`` pins its digest. The digest of a large file at a pinned commit is the Hub's.

    Raises :class:`ArtifactError`: it is missing or cannot be fetched.
    """
    source, digest = split_digest(source)
    repo, revision = split_revision(source)
    path = Path(repo)
    if path.is_file():
        return Weights(path, digest)
    if path.is_dir():
        if not (path / filename).is_file():
            raise ArtifactError(f"{repo}: no file {filename} in this folder")
        return Weights(path / filename, digest)
    if repo.startswith(("/", ".", "~")):
        raise ArtifactError(f"{repo}: no such file or folder")
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repo, filename, revision=revision))
    except Exception as error:
        reason = one_line(error)[:300]
        raise ArtifactError(f"{repo}/{filename}: cannot be fetched ({reason}); or name a local folder") from error
    blob = path.resolve().name  # the Hub's cache names large files by their sha256
    pinned = COMMIT.fullmatch(revision or "") and DIGEST.fullmatch(blob)
    return Weights(path, digest or (blob if pinned else None))


def read_checkpoint(source: str, filename: str) -> tuple[dict[str, Tensor], str]:
    """The tensors (:func:`load_tensors`) of a checkpoint found by :func:`weights_file`, and its path."""
    path, digest = weights_file(source, filename)
    return load_tensors(path, digest), str(path)


def download(url: str, *, sha256: str | None, name: str | None = None) -> Path:
    """A file from a URL, cached. ``sha256`` may be a prefix of the digest; without one only https is accepted.

    Raises :class:`ArtifactError`: the file cannot be fetched, or its digest is another one.
    Raises :class:`StorageError`: the cache cannot be written.
    """
    if not url.startswith("https://") and sha256 is None:
        raise ArtifactError(f"{url}: is not fetched without https:// unless its digest is pinned (URL#sha256=...)")
    name = name or re.sub(r"[^\w.+-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])
    if not name.strip("."):
        raise ArtifactError(f"{url}: names no file")
    target = cache_dir() / "weights" / name
    if target.is_file() and (sha256 is None or sha256_file(target).startswith(sha256)):
        return target
    import httpx2 as httpx

    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with storing(target), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        partial = Path(scratch) / name
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer, partial.open("wb") as sink:
                for chunk in answer.raise_for_status().iter_bytes():
                    sink.write(chunk)
        except httpx.HTTPError as error:
            reason = f"{url}: cannot be fetched ({one_line(error)[:300]})"
            raise ArtifactError(f"{reason}; download it yourself and name its path") from error
        digest = sha256_file(partial)
        if sha256 is not None and not digest.startswith(sha256):
            raise ArtifactError(f"{url}: sha256 is {digest}, expected {sha256}; the file was discarded")
        return partial.replace(target)


def refuse_unpinned(path: Path, sha256: str | None, name: str | None = None) -> None:
    """Raise ``ArtifactError`` for a pickled checkpoint whose digest is not pinned or differs; the message, with the
    actual digest, calls it ``name``.
    """
    digest = sha256_file(path)
    if sha256 is None:
        raise ArtifactError(
            f"{name or path}: a pickled checkpoint without a pinned sha256: if you trust it, write "
            f"{name or path}#sha256={digest}, or convert it to .safetensors"
        )
    if not digest.startswith(sha256):
        raise ArtifactError(f"{name or path}: sha256 is {digest}, expected {sha256}")


def load_tensors(path: str | Path, sha256: str | None = None, name: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a pinned PyTorch checkpoint read with ``weights_only=True``.

    ``{"state_dict": ...}`` and ``{"model": ...}`` wrappers are opened. ``name`` is the user's name for the file.

    Raises :class:`ArtifactError`: the file is missing, unreadable, holds no tensors, or is a pickle that is not pinned.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such weights file")
    if path.suffix != ".safetensors":
        refuse_unpinned(path, sha256, name)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path}: cannot be read as weights ({one_line(error)[:200]})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping):
        raise ArtifactError(f"{path}: holds {type(tree).__name__}, not named tensors")
    return {name: value for name, value in tree.items() if isinstance(value, torch.Tensor)}


def check_tensors(source: str, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Raise ``ArtifactError`` for tensors whose names or shapes are not the expected ones."""
    misshaped = [n for n, t in actual.items() if n in expected and t.shape != expected[n].shape]
    missing, unexpected = (
        [n for n in one if n not in other] for one, other in ((expected, actual), (actual, expected))
    )
    refuse_mismatch(source, missing, unexpected, [f"{n} {tuple(actual[n].shape)}" for n in misshaped])


def refuse_mismatch(source: str, missing: list[str], unexpected: list[str], misshaped: list[str]) -> None:
    """Raise ``ArtifactError`` if any list of names is not empty; the message has the first of each."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    parts = [f"{len(names)} {kind} (first {names[0]})" for kind, names in kinds.items() if names]
    if parts:
        raise ArtifactError(f"{source}: these are not its weights: {', '.join(parts)}")
