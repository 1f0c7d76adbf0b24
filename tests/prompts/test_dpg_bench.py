"""DPG-Bench's file of questions."""

import pytest
from support.dpg_bench import COLUMNS, row, some_rows, write_csv

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.dpg_bench import prompts, read


def test_items_become_prompts_with_their_questions(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    path = write_csv(tmp_path / "dpg_bench.csv", some_rows(["12", "partiprompts97"]))
    first, second = prompts("test", path)
    assert (first.id, first.task, first.text) == ("12", "dpg-bench", "a picture called 12")
    assert second.metadata["questions"][2] == {
        "id": 3,
        "question": "Is the bright thing dark?",
        "parents": [1, 2],
        "category": "attribute - color",
    }
    with pytest.raises(PromptError, match="dpg-bench: no split 'train'; known: test"):
        prompts("train", path)


BAD = {
    "x,y\n1,2\n": "no column 'item_id': this is not DPG-Bench's",
    ",".join(COLUMNS) + "\n": "no prompt in it",
    ",".join(COLUMNS) + '\n"a\n': "cannot be read as CSV",
}


@pytest.mark.parametrize("text", BAD)
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(PromptError, match=BAD[text]) as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cell", "value", "words"),
    [
        ("item_id", "../x", r"p\.csv:3: item_id '\.\./x' names a picture"),
        ("proposition_id", "one", r"p\.csv:3: proposition_id or dependency is not a whole number"),
        ("dependency", "1;2", r"p\.csv:3: proposition_id or dependency is not a whole number"),
        ("question_natural_language", " ", r"p\.csv:3: question_natural_language is empty"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named(tmp_path, cell, value, words):
    rows = [row("a", number, 0, "entity - whole", "Is it?") for number in (1, 2)]
    rows[1][cell] = value
    with pytest.raises(PromptError, match=words):
        read(write_csv(tmp_path / "p.csv", rows))
