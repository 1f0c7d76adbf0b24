"""Prompt files line by line, and the message for an invalid line."""

import json

import pytest

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.files import LONGEST_LINE, Row, load_prompts, read_rows, repeats


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_know_their_lines(tmp_path):
    path = write(tmp_path / "p.txt", b"\xef\xbb\xbf one \r\n\n \t\ntwo\tand\xe2\x80\xa8three\n")
    assert read_rows(path, "t") == [Row(f"{path}:1", "one", "t"), Row(f"{path}:4", "two\tand\u2028three", "t")]


def test_ids_tasks_and_metadata(tmp_path):
    rows = [{"prompt": "a\nb", "id": 7, "task": "u", "n": 1}, {"prompt": "c"}]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    first, second = f"{path}:1", f"{path}:2"
    assert read_rows(path, "t") == [
        Row(first, "a\nb", "u", "7", {"prompt": "a\nb", "n": 1}),
        Row(second, "c", "t", None, {"prompt": "c"}),
    ]
    prompts = load_prompts(str(path), task="t")
    assert [(p.id, p.text, p.task) for p in prompts] == [("7", "a\nb", "u"), (second, "c", "t")]
    assert load_prompts(str(path), task="t", limit=1) == prompts[:1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"one\ncaf\xe9\n", r"p\.txt:2: not UTF-8 text \(byte 3 of the line\)"),
        ("p.txt", "one\n".encode("utf-16"), r"p\.txt:1: .*begins as UTF-16"),
        ("p.jsonl", b"\xfe\xff\x00{", r"p\.jsonl:1: .*begins as UTF-16"),
        ("p.txt", b"one\n\ntw\0o\n", r"p\.txt:3: holds the control character \\x00"),
        ("p.txt", b"a\rb\rc\n", r"p\.txt:1: holds the control character \\r"),
        ("p.txt", b"\x1b[2Jx\n", r"p\.txt:1: holds the control character \\x1b"),
        ("p.txt", "x" * 10_001, r"p\.txt:1: a prompt of 10001 characters; at most 10000"),
        ("p.txt", b"one\n" + b"x" * (LONGEST_LINE + 9), r"p\.txt:2: is longer than 1 MiB"),
        ("p.jsonl", "[" * 100_000, r"p\.jsonl:1: not JSON \(nested too deeply\)"),
        ("p.jsonl", "9" * 5000, r"p\.jsonl:1: not JSON"),
        ("p.jsonl", '{"prompt": "x", "n": NaN}', r"p\.jsonl:1: not JSON \(NaN is not a JSON number"),
        ("p.jsonl", '{"prompt": "x\\u0000"}', r"holds the control character \\x00"),
        ("p.jsonl", '{"prompt": "x\\ud800"}', r"holds the control character \\ud800"),
        ("p.jsonl", '{"prompt": ["x"]}', 'a text under "prompt"'),
        ("p.jsonl", '{"prompt": "x", "task": 3}', '"task" must be a name'),
        ("p.jsonl", '{"prompt": "x", "id": {}}', '"id" must be a text or a whole number'),
        ("p.jsonl", '{"prompt": "x", "id": true}', '"id" must be a text or a whole number'),
        ("p.jsonl", '{"prompt": "x", "id": ""}', "1 to 200 characters"),
        ("p.jsonl", '{"prompt": "x", "id": "a\\nb"}', "1 to 200 characters"),
        ("p.jsonl", '{"prompt": "x", "id": 1}\n\n{"prompt": "y", "id": "1"}', r":3: line 1 has the id '1' too"),
        ("p.csv", "x", "neither a registered source nor"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, content, message):
    with pytest.raises(PromptError, match=message) as caught:
        read_rows(write(tmp_path / name, content), "t")
    assert len(str(caught.value)) < 500


def test_a_path_that_is_not_a_readable_file(tmp_path):
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(PromptError, match=r"is a folder; name a \.txt or \.jsonl file in it"):
        read_rows(tmp_path / "d.txt")
    with pytest.raises(PromptError, match="no such file"):
        read_rows(tmp_path / "none.txt")
    for name in ("x" * 300 + ".txt", "a\0b.txt"):
        with pytest.raises(PromptError, match="cannot be read"):
            read_rows(tmp_path / name)


def test_repeats_are_counted_by_task_and_text():
    rows = [Row("f:1", "a", "t"), Row("f:2", "b", "t"), Row("f:5", "b", "t"), Row("f:6", "a", "u")]
    assert "f: 1 of 3 prompts are there more than once, the first in line 2" in str(repeats(rows))
    assert repeats(rows[:2]) is None


@pytest.mark.parametrize(("text", "message"), [("x", "no task"), ("", "no prompt")])
def test_an_unusable_file_is_named(tmp_path, text, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(str(write(tmp_path / "p.txt", text)))


def test_a_registered_source_is_filtered_by_task():
    assert {p.task for p in load_prompts("toy:all", split="validation")} == {"geneval", "ocr"}
    assert {p.task for p in load_prompts("toy:all", task="ocr", split="validation")} == {"ocr"}
