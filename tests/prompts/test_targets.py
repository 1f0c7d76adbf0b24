"""The text that a prompt asks for: the row's target or the first quotation."""

import pytest

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.targets import parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('a "b" c', "b"),
        ('a sign"OPEN"', "OPEN"),
        ('a "left" door and a "right" one', "left"),
        ('he says "it\'s 5 o\'clock" to "her', "it's 5 o'clock"),
        ('a shirt with "42"', "42"),
        ('says " padded "', " padded "),
        # inch marks
        ('5" sign "OPEN"', "OPEN"),
        ('a 5"x7" card with "HI"', "HI"),
        ('a 6\'2" man with "HI" and a 5" pipe', "HI"),
        ('the number "42" on a 5" pipe', "42"),
        ('a poster with "Top 10" and "Top 5"', "Top 10"),
        ('"7" and "8" on a 9" pipe', "7"),
        # escaped and doubled marks
        (r"a sign \"OPEN\" here", "OPEN"),
        (r'a 5\" sign "OPEN"', "OPEN"),
        (r'a sign "say \"hi\" now" here', 'say "hi" now'),
        ('the text ""Gif Co"" in shells', "Gif Co"),
        ('a sign "say ""hi"" now" here', 'say "hi" now'),
        # fields of a CSV file
        ('"a sign that says ""OPEN"" on a door"', "OPEN"),
        ('"""OPEN"" on a door"', "OPEN"),
        ('"a door with ""OPEN"""', "OPEN"),
        # typographic marks
        ("a sign “OPEN” here", "OPEN"),
        ("a sign „OFFEN“ here", "OFFEN"),
        ("a sign „OTWARTE” here", "OTWARTE"),
        ("a sign ”ÖPPET” here", "ÖPPET"),
        ("a sign «\u00a0OUVERT\u00a0» here", "OUVERT"),
        ("a sign »OFFEN« here", "OFFEN"),
        ("a sign 「営業中」 here", "営業中"),
        ("a sign 『営業中』 here", "営業中"),
        ("a sign ＂OPEN＂ here", "OPEN"),
        ('a sign “a 5" pipe” and "more"', 'a 5" pipe'),
    ],
)
def test_the_target_is_the_first_quotation(text, target):
    assert parse_target("f:1", text, {}) == target


@pytest.mark.parametrize("text", ["none", 'a "b c', 'a " " c', 'an empty "" before "more"', 'a 5" screen', "“ ”"])
def test_a_prompt_that_quotes_nothing_is_refused(text):
    with pytest.raises(PromptError, match="f:1: no text in double quotes"):
        parse_target("f:1", text, {})


@pytest.mark.parametrize("text", ['a sign "12" SUB"', 'a label "a 5" pipe"', '"5" pipe" and "No 8"'])
def test_a_quotation_that_may_end_at_an_inch_mark_is_refused(text):
    with pytest.raises(PromptError, match="f:1: the quotation may end at an inch mark"):
        parse_target("f:1", text, {})
    assert parse_target("f:1", text, {"target": "5"}) == "5"


@pytest.mark.parametrize(("value", "target"), [("d", "d"), (24, "24"), (2.5, "2.5"), (None, "b")])
def test_the_row_s_target_comes_before_the_quotation(value, target):
    assert parse_target("f:1", 'a "b" c', {"target": value}) == target


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", '"target" is blank'),
        (" \t", '"target" is blank'),
        (["d"], r"must be a text or a number, not \['d'\]"),
        (True, "must be a text or a number, not True"),
        ({"en": "d"}, "must be a text or a number"),
        ("x" * 1001, "a text to render of 1001 characters; at most 1000"),
    ],
)
def test_an_unusable_target_is_named(value, message):
    with pytest.raises(PromptError, match=message):
        parse_target("f:1", 'a "b" c', {"target": value})


def test_long_texts_of_marks_are_parsed_in_linear_time():
    for text in ('"' * 9_999, '""' * 4_999 + "a", '\\"' * 5_000, "“" * 10_000, '1"' * 5_000):
        with pytest.raises(PromptError):
            parse_target("f:1", text, {})
