"""Prompt embeddings that outlive a run: each text is encoded once, kept on disk, and read row by row."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowopd_cli.system.files import atomic_write

FORMAT = 1
SUFFIX = ".safetensors"
DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError)
MEMORY_BYTES = 1024**3
SHARD_BYTES = 64 * 1024**2

Row = tuple[Tensor, Tensor]
_log = logging.getLogger("flowopd")


@dataclass(frozen=True)
class _Place:
    """Where a text's row lies, and what its bytes add up to."""

    shard: str
    row: int
    checksum: int


def store_folder(root: Path, identity: Mapping[str, object]) -> Path:
    """The folder under ``root`` for embeddings of one ``identity``: all that they depend on, beside their text."""
    told = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return root / hashlib.sha256(told.encode()).hexdigest()[:32]


class EmbeddingStore:
    """Rows ``(embeds (L, D), pooled (P,))`` by text, on the CPU.

    With a folder they lie there in shards of up to ``shard_bytes``, and at most ``memory_bytes`` of what was read stay
    in memory, the latest used. A shard is written under a name of its own, at once or not at all, so that processes may
    share a folder; one that is damaged is removed with a remark, and its texts are unknown again. Without a folder, or
    when it cannot be written, everything stays in memory.
    """

    def __init__(
        self, folder: Path | None = None, *, memory_bytes: int = MEMORY_BYTES, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = folder
        self._memory_bytes, self._shard_bytes = memory_bytes, shard_bytes
        self._writable = True
        self._listed: set[str] = set()
        self._places: dict[str, _Place] = {}
        self._own: dict[str, Row] = {}  # not on disk, so never dropped
        self._own_bytes = 0
        self._recent: OrderedDict[str, Row] = OrderedDict()
        self._recent_bytes = 0

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """Those of the texts, each once, whose rows are neither here nor, as of now, in the folder."""
        self._list()
        return [text for text in dict.fromkeys(texts) if text not in self._own and _key(text) not in self._places]

    def find(self, texts: Sequence[str]) -> dict[str, Row]:
        """The rows of those texts that have any, each shard opened once."""
        if not all(text in self._own or text in self._recent or _key(text) in self._places for text in texts):
            self._list()
        found: dict[str, Row] = {}
        shards: dict[str, list[tuple[str, _Place]]] = {}
        for text in texts:
            row = self._own.get(text) or self._recent.get(text)
            if row is not None:
                found[text] = row
            elif (place := self._places.get(_key(text))) is not None:
                shards.setdefault(place.shard, []).append((text, place))
        for text in found.keys() & self._recent.keys():
            self._recent.move_to_end(text)
        for shard, wanted in shards.items():
            found |= self._read(shard, wanted)
        return found

    def add(self, rows: Mapping[str, Row]) -> None:
        """Take rows on; they reach the disk with :meth:`flush`, or before when they make a whole shard."""
        self._own |= rows
        self._own_bytes += sum(map(_size, rows.values()))
        if self._own_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet; when that fails, say so once and go on in memory."""
        if self.folder is None or not self._writable or not self._own:
            return
        rows, self._own, self._own_bytes = self._own, {}, 0
        name = f"{uuid.uuid4().hex}{SUFFIX}"
        index = [(_key(text), _checksum(row)) for text, row in rows.items()]
        tensors = {
            "embeds": torch.stack([embeds for embeds, _ in rows.values()]),
            "pooled": torch.stack([pooled for _, pooled in rows.values()]),
        }
        try:
            atomic_write(self.folder / name, save(tensors, {"rows": json.dumps(index)}))
        except OSError as error:
            _log.warning("prompt embeddings stay in memory: %s", _line(error))
            self._writable, self._own = False, rows
            return
        self._listed.add(name)
        self._take_in(name, index)
        for text, row in rows.items():
            self._keep(text, row)

    def _list(self) -> None:
        """Take in shards that were written since the last look, by whichever process."""
        paths: list[Path] = []
        with suppress(OSError):  # there is none yet, or it is not ours to read
            paths = [] if self.folder is None else [path for path in self.folder.iterdir() if path.suffix == SUFFIX]
        for path in sorted(path for path in paths if path.name not in self._listed):
            self._listed.add(path.name)
            try:
                with safe_open(path, framework="pt") as opened:
                    self._take_in(path.name, json.loads(opened.metadata()["rows"]))
            except DAMAGE as error:
                self._forget(path.name, error)

    def _take_in(self, shard: str, index: Sequence[tuple[str, int]]) -> None:
        for row, (key, checksum) in enumerate(index):
            self._places.setdefault(key, _Place(shard, row, checksum))

    def _read(self, shard: str, wanted: Sequence[tuple[str, _Place]]) -> dict[str, Row]:
        """Rows of one shard, up to where it is damaged."""
        found: dict[str, Row] = {}
        try:
            with safe_open(Path(str(self.folder)) / shard, framework="pt") as opened:
                embeds, pooled = opened.get_slice("embeds"), opened.get_slice("pooled")
                for text, place in wanted:
                    row = embeds[place.row].clone(), pooled[place.row].clone()
                    if _checksum(row) != place.checksum:
                        raise ValueError("a checksum differs")
                    found[text] = row
        except DAMAGE as error:
            self._forget(shard, error)
        for text, row in found.items():
            self._keep(text, row)
        return found

    def _keep(self, text: str, row: Row) -> None:
        """Remember a row that is on disk, and let the least recently used go."""
        self._recent_bytes += 0 if text in self._recent else _size(row)
        self._recent[text] = row
        while self._recent_bytes > self._memory_bytes:
            self._recent_bytes -= _size(self._recent.popitem(last=False)[1])

    def _forget(self, shard: str, reason: Exception) -> None:
        """Drop a damaged shard; one that another process has dropped already needs no words."""
        self._places = {key: place for key, place in self._places.items() if place.shard != shard}
        if isinstance(reason, OSError):  # gone, or not to be read just now: it may be sound for others
            return
        path = Path(str(self.folder)) / shard
        _log.warning("%s: damaged prompt embeddings; its texts are encoded again (%s)", path, _line(reason))
        with suppress(OSError):
            path.unlink()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _size(row: Row) -> int:
    return sum(part.numel() * part.element_size() for part in row)


def _checksum(row: Row) -> int:
    total = 0
    for part in row:
        total = zlib.crc32(part.contiguous().view(torch.uint8).numpy(), total)
    return total


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
