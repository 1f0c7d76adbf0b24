"""Prompts of files and of registered sources."""

import json

import pytest

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.load import load_prompts


def test_files_and_their_tasks(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\n  two  \n", encoding="utf-8")
    assert [(p.text, p.task) for p in load_prompts(str(path), task="ocr")] == [("one", "ocr"), ("two", "ocr")]
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "a cat", "task": "geneval", "tag": "single_object"}, {"prompt": "a dog", "id": "dog"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = load_prompts(str(path), task="other")
    assert (first.task, first.metadata["tag"]) == ("geneval", "single_object")
    assert (second.task, second.id) == ("other", "dog")
    assert len(load_prompts(str(path), task="other", limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.jsonl", '{"prompt": "x"}', "no task"),
        ("d.txt", "x", "no task"),
        ("e.txt", "", "no prompt"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        load_prompts(str(tmp_path / name))


def test_a_registered_source_is_filtered_by_task():
    assert {p.task for p in load_prompts("toy:all", split="validation")} == {"geneval", "ocr"}
    assert {p.task for p in load_prompts("toy:all", task="ocr", split="validation")} == {"ocr"}
