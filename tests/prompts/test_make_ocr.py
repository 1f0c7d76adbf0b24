"""Generated training prompts with a text to write."""

from flowopd_cli.prompts.make_ocr import make
from flowopd_cli.prompts.targets import parse_target


def test_every_prompt_quotes_its_target():
    rows = list(make(500, 3))
    for row in rows:
        assert parse_target("row", row["prompt"], {}) == row["target"]
        assert row["prompt"].count('"') == 2
        assert 2 <= len(row["target"]) <= 29
    assert len({row["prompt"] for row in rows}) > 490
    assert {row["task"] for row in rows} == {"ocr"}


def test_a_row_is_a_function_of_seed_and_number():
    assert list(make(20, 3)) == list(make(30, 3))[:20]
    assert list(make(20, 3)) != list(make(20, 4))
