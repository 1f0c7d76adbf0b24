"""Settings of a worker: no address beyond this machine without a token, where tokens come from, times that fit."""

import pytest

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.protocol import Limits
from flowopd_cli.rewards.remote.settings import Settings, from_flags, is_loopback, read_token


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(RewardError, match="needs a token: set FLOWOPD_REWARD_TOKEN"):
        Settings(host)
    assert "open-sesame" not in repr(Settings(host, token="open-sesame"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host):
    assert is_loopback(host)
    Settings(host)


def test_where_tokens_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "abc")
    assert read_token("MINE") == "abc"
    assert read_token("NOBODYS") is None
    (tmp_path / "token").write_text("from-file\n")
    assert read_token("MINE", tmp_path / "token") == "from-file"
    (tmp_path / "empty").write_text("\n")
    for path, message in (("empty", "visible ASCII"), ("none", "cannot be read")):
        with pytest.raises(RewardError, match=message):
            read_token("MINE", tmp_path / path)


@pytest.mark.parametrize(("linger", "seconds"), [(1.0, 0.3), (0.5, 0.5), (0.0, 0.0), (-1.0, 3.0), (0.0, float("inf"))])
def test_times_by_which_nothing_could_be_scored_are_refused(linger, seconds):
    with pytest.raises(RewardError, match=r"--queue-seconds .* must be above --linger"):
        Settings(linger=linger, limits=Limits(queue_seconds=seconds))


def test_flags_set_the_limits():
    settings = from_flags({"port": 5, "max_pixels": 7, "max_bytes": 8, "queue_seconds": 9.0})
    assert (settings.host, settings.port) == ("127.0.0.1", 5)
    assert settings.limits == Limits(pixels=7, body_bytes=8, queue_seconds=9.0)
