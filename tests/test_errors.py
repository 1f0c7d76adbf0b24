"""What an error shows of the text that went into it."""

import time

import pytest

from flowopd_cli.errors import ArtifactError, one_line, redacted


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:S3CRET@host/x.pt: gone", "https://***@host/x.pt: gone"),
        ("s3://S3CRET@bucket", "s3://***@bucket"),
        ("http://h/x?api_key=S3CRET&b=1", "http://h/x?api_key=***&b=1"),
        ("http://h/x?b=1&X-Amz-Signature=S3CRET", "http://h/x?b=1&X-Amz-Signature=***"),
        ("Authorization: Bearer S3CRET.x-y", "Authorization: Bearer ***"),
        ("hf_S3CRETS3CRETS3CRET is not a repository", "hf_*** is not a repository"),
        ("sk-proj-S3CRETS3CRETS3CRET", "sk-***"),
    ],
)
def test_what_an_error_shows_has_no_secret_in_it(text, kept):
    assert str(ArtifactError(text)) == redacted(text) == one_line(text) == kept


@pytest.mark.parametrize(
    "text",
    ["hub:me/model@v1", "runs/t-ocr", "http://h:80/a@b", "max_tokens=5", "the bearer of news", "hf_hub", "a?token"],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


def test_a_line_is_one_line_that_moves_no_cursor():
    assert one_line("a\n\tb\x1b[2J\u202ec\x00") == r"a b\x1b[2J\u202ec\x00"
    assert one_line("\ud800") == r"\ud800"
    assert len(one_line("x" * 10_000)) == 2000


def test_redaction_takes_no_time_on_hostile_text():
    started = time.perf_counter()
    for text in ("a" * 200_000, "a://" * 50_000, "?" * 200_000, "bearer " * 30_000, "?token" * 30_000, "hf_" * 60_000):
        redacted(text)
    assert time.perf_counter() - started < 5
