"""Embeddings on disk: read again, shared between processes, and encoded again after damage."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowopd_cli.models import embeddings
from flowopd_cli.models.embeddings import EmbeddingStore, Row

ROW_BYTES = 4 * (3 * 8 + 5) + 3


def row(number):
    """A different row for every number."""
    generator = torch.Generator().manual_seed(number)
    embeds, pooled = torch.randn(3, 8, generator=generator), torch.randn(5, generator=generator)
    return Row(embeds, pooled, torch.tensor([True, number % 2 == 0, False]))


def rows(*numbers):
    return {f"text {number}": row(number) for number in numbers}


def filled(folder, *numbers, **options):
    store = EmbeddingStore(folder, **options)
    store.add(rows(*numbers))
    store.flush()
    return store


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(a, b) for text in found for a, b in zip(found[text], expected[text], strict=True))


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_back_bit_by_bit(tmp_path, dtype):
    texts = "", " ", "é", "e\u0301", "\ud800", "日本"
    encoded = zip(texts, rows(*range(6)).values(), strict=True)
    given = {text: Row(embeds.to(dtype), pooled.to(dtype), mask) for text, (embeds, pooled, mask) in encoded}
    first = EmbeddingStore(tmp_path)
    first.add(given)
    first.flush()
    found = EmbeddingStore(tmp_path)
    assert found.unknown([*given, "new", "new"]) == ["new"]
    assert same(found.find([*given, "new"]), given)
    assert [part.dtype for row in found.find(list(given)).values() for part in row] == [dtype, dtype, torch.bool] * 6


def test_without_a_folder_everything_stays_in_memory():
    store = filled(None, *range(9), shard_bytes=1)
    assert same(store.find(list(rows(*range(9)))), rows(*range(9)))


def test_shards_are_written_as_they_fill(tmp_path):
    store = EmbeddingStore(tmp_path, shard_bytes=3 * ROW_BYTES)
    for number in range(7):
        store.add(rows(number))
    assert len(shards(tmp_path)) == 2
    store.flush()
    store.flush()
    assert len(shards(tmp_path)) == 3
    assert same(EmbeddingStore(tmp_path).find(list(rows(*range(7)))), rows(*range(7)))


def test_rows_that_another_process_writes_are_seen(tmp_path):
    early = EmbeddingStore(tmp_path)
    assert early.unknown(["text 1"]) == ["text 1"]
    filled(tmp_path, 1)
    (tmp_path / ".x.safetensors.1.part").write_bytes(b"half")  # of an interrupted write
    assert early.unknown(["text 1"]) == []
    assert same(early.find(["text 1"]), rows(1))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    save_file({"x": torch.zeros(1)}, path)


@pytest.mark.parametrize("damage", [cut, flip, foreign])
def test_a_damaged_shard_is_removed_with_a_warning(tmp_path, caplog, damage):
    filled(tmp_path, 1, 2)
    damage(shards(tmp_path)[0])
    filled(tmp_path, 3)
    store, texts, expected = EmbeddingStore(tmp_path), ["text 2", "text 3"], rows(2, 3)
    assert same(store.find(texts), rows(3))
    assert len(shards(tmp_path)) == 1
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert "damaged prompt embeddings; its texts are encoded again" in caplog.text
    assert store.unknown(texts) == ["text 2"]
    store.add(rows(2))
    store.flush()
    assert same(EmbeddingStore(tmp_path).find(texts), expected)


def test_the_texts_of_a_removed_shard_are_unknown(tmp_path, caplog):
    filled(tmp_path, 1)
    store = EmbeddingStore(tmp_path)
    assert store.unknown(["text 1"]) == []
    shards(tmp_path)[0].unlink()
    assert store.find(["text 1"]) == {}
    assert store.unknown(["text 1"]) == ["text 1"]
    assert not caplog.records


def test_a_read_only_folder_is_a_warning_and_rows_stay_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()
    store = filled(tmp_path / "file" / "below", 1)
    store.add(rows(2))
    store.flush()
    assert same(store.find(["text 1", "text 2"]), rows(1, 2))
    assert caplog.text.count("cannot be written") == 1


def test_a_folder_that_cannot_be_searched_leaves_rows_in_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "glob", refuse)
    store = EmbeddingStore(tmp_path)
    store.add(rows(1))
    assert same(store.find(["text 1"]), rows(1))


def test_a_full_disk_leaves_stored_rows_readable(tmp_path, monkeypatch, caplog):
    store = filled(tmp_path, 1)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embeddings, "atomic_write", full)
    for number in (2, 3):
        store.add(rows(number))
        store.flush()
    assert same(store.find(list(rows(1, 2, 3))), rows(1, 2, 3))
    assert [record.message.count("No space left") for record in caplog.records] == [1]


def write(folder, first):
    store, texts = EmbeddingStore(folder, shard_bytes=1), list(rows(*range(first, first + 40)))
    for number in range(first, first + 40):
        if store.unknown([f"text {number}"]):
            store.add(rows(number))
    assert same(store.find(texts), rows(*range(first, first + 40)))


def test_processes_that_write_at_the_same_time_leave_every_row_sound(tmp_path):
    fork = multiprocessing.get_context("fork")
    copies = [fork.Process(target=write, args=(tmp_path, first)) for first in (0, 20)]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.join(120)
        assert copy.exitcode == 0
    store = EmbeddingStore(tmp_path)
    assert store.unknown(list(rows(*range(60)))) == []
    assert same(store.find(list(rows(*range(60)))), rows(*range(60)))
