"""Which weights score, told by their bytes rather than by where they lie. Standard library."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def path_digest(path: Path) -> str:
    """``sha256:`` and the digest of a file, or of the digests of a folder's weights in the order of their names."""
    if path.is_file():
        return f"sha256:{file_digest(path)}"
    files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS and file.is_file())
    return f"sha256:{hashlib.sha256(''.join(map(file_digest, files)).encode()).hexdigest()}"
