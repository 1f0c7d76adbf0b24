"""Durations and sizes as text."""

import pytest

from flowopd_cli.system.text import duration, gib


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.1, "7.1 s"), (185, "3 min 05 s"), (3720, "1 h 02 min"), (90061, "25 h 01 min"), (0, "0 s"), (-1, "0 s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(3 << 30, "3.0 GiB"), (1 << 29, "0.5 GiB"), (50 << 20, "50.0 MiB")])
def test_gib(count, text):
    assert gib(count) == text
