"""Durations and sizes as text."""

from flowopd_cli.system.text import duration, gib


def test_durations_and_sizes():
    texts = {7.1: "7.1 s", 185: "3 min 05 s", 3720: "1 h 02 min", 90061: "25 h 01 min", 0: "0 s", -1: "0 s"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
    assert [gib(count) for count in (3 << 30, 1 << 29, 50 << 20)] == ["3.0 GiB", "0.5 GiB", "50.0 MiB"]
