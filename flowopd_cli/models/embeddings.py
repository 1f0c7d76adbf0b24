"""Prompt embeddings on disk: each text is encoded once, for this run and for later ones."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowopd_cli.errors import one_line
from flowopd_cli.system.files import atomic_write

FORMAT = 1
SUFFIX = ".safetensors"
DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError)
SHARD_BYTES = 64 * 1024**2

_log = logging.getLogger("flowopd")


class Row(NamedTuple):
    """One encoded text: ``embeds (L, D)``, and what its family has besides: ``pooled (P,)``, ``mask (L,)``."""

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class _Entry(NamedTuple):
    shard: str
    row: int
    checksum: int


def store_folder(root: Path, identity: Mapping[str, object]) -> Path:
    """The folder under ``root`` for embeddings of one ``identity``: everything they depend on except the text."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:32]


class EmbeddingStore:
    """Rows by text, on the CPU; those of one store have the same parts.

    A folder holds them in shards of up to ``shard_bytes``, written atomically, so that processes may share it. A
    damaged shard is removed with a warning. Without a folder, or if it cannot be written, rows stay in memory.
    """

    def __init__(self, folder: Path | None = None, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self._shard_bytes = shard_bytes
        self._writable = folder is not None
        self._shards: set[str] = set()
        self._index: dict[str, _Entry] = {}
        self._unsaved: dict[str, Row] = {}
        self._last: dict[str, Row] = {}  # found last, asked for again at each step of a rollout

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts without a row in memory or in the folder."""
        self._refresh()
        return [text for text in dict.fromkeys(texts) if not self._has(text)]

    def find(self, texts: Sequence[str]) -> dict[str, Row]:
        """The rows of those texts that have one; each shard is opened once."""
        if all(text in self._last for text in texts):
            return {text: self._last[text] for text in texts}
        if not all(map(self._has, texts)):
            self._refresh()
        rows = {text: self._unsaved[text] for text in texts if text in self._unsaved}
        shards: dict[str, dict[str, _Entry]] = {}
        for text in texts:
            if text not in rows and (entry := self._index.get(_key(text))):
                shards.setdefault(entry.shard, {})[text] = entry
        for shard, entries in shards.items():
            rows |= self._read(shard, entries)
        self._last = rows
        return dict(rows)

    def add(self, rows: Mapping[str, Row]) -> None:
        """Add rows; :meth:`flush` writes them, or earlier a full shard."""
        self._unsaved |= rows
        if sum(part.nbytes for row in self._unsaved.values() for part in row.parts.values()) >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write unsaved rows; if this fails, warn once and keep them in memory."""
        if self.folder is None or not self._writable or not self._unsaved:
            return
        rows, name = self._unsaved, f"{uuid.uuid4().hex}{SUFFIX}"
        index = [(_key(text), _checksum(row)) for text, row in rows.items()]
        columns = {
            name: torch.stack([row.parts[name] for row in rows.values()]) for name in next(iter(rows.values())).parts
        }
        content = save(columns, {"rows": json.dumps(index)})
        try:
            atomic_write(self.folder / name, content)
        except OSError as error:
            _log.warning("prompt embeddings stay in memory: %s", one_line(error))
            self._writable = False
            return
        self._unsaved = {}
        self._register(name, index)

    def _has(self, text: str) -> bool:
        return text in self._unsaved or _key(text) in self._index

    def _refresh(self) -> None:
        """Register new shards, written by any process."""
        paths: list[Path] = []
        with suppress(OSError):  # a folder that may not be searched
            paths = sorted(self.folder.glob(f"[!.]*{SUFFIX}")) if self.folder is not None else []
        for path in paths:
            if path.name not in self._shards:
                with self._forgetting(path), safe_open(path, framework="pt") as file:
                    self._register(path.name, json.loads(file.metadata()["rows"]))

    def _register(self, shard: str, index: Sequence[tuple[str, int]]) -> None:
        self._shards.add(shard)
        for row, (key, checksum) in enumerate(index):
            self._index.setdefault(key, _Entry(shard, row, checksum))

    def _read(self, shard: str, entries: Mapping[str, _Entry]) -> dict[str, Row]:
        """Rows of one shard, up to the first damage."""
        path, rows = Path(str(self.folder)) / shard, dict[str, Row]()
        with self._forgetting(path), safe_open(path, framework="pt") as file:
            columns = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for text, entry in entries.items():
                row = Row(**{name: column[entry.row].clone() for name, column in columns.items()})
                if _checksum(row) != entry.checksum:
                    raise ValueError("a checksum differs")
                rows[text] = row
        return rows

    @contextmanager
    def _forgetting(self, path: Path) -> Iterator[None]:
        """Delete a damaged shard; a missing or currently unreadable one is only forgotten."""
        try:
            yield
        except DAMAGE as error:
            self._shards.add(path.name)
            self._index = {key: entry for key, entry in self._index.items() if entry.shard != path.name}
            if isinstance(error, OSError):
                return
            _log.warning("%s: damaged prompt embeddings; its texts are encoded again (%s)", path, one_line(error))
            with suppress(OSError):
                path.unlink()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _checksum(row: Row) -> int:
    return zlib.crc32(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in row.parts.values()))
