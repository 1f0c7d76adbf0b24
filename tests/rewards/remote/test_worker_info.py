"""What a worker says of itself, believed only where it can be."""

import pytest

from flowopd_cli.rewards.remote.worker_info import WorkerMismatch, info_of, introduced, shown

INFO = {"protocol": 1, "reward": "red", "fingerprint": "abc", "limits": {"pictures": 2}, "weights": {"model": "x"}}


def test_a_sound_worker_is_met():
    met = introduced("http://h:1", {**INFO, "low": 0, "high": None}, "red")
    assert (info_of(met).low, info_of(met).high) == (0.0, float("inf"))
    assert shown(met) == "red (model x)"


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": {"pictures": "2"}},
        {"limits": {"pictures": 0}},
        {"limits": {"pictures": True}},
        {"limits": []},
        {"weights": "x"},
        {"low": "zero"},
        {"high": []},
        {"high": float("nan")},
    ],
)
def test_a_worker_that_says_nonsense_is_refused(changes):
    with pytest.raises(WorkerMismatch, match="says of itself what no scoring worker says"):
        introduced("http://h:1", {**INFO, **changes}, None)


@pytest.mark.parametrize(
    "tree", [None, [], {}, {"protocol": 1}, {"protocol": 1, "reward": ["red"], "fingerprint": "a"}]
)
def test_what_is_no_worker_is_refused(tree):
    with pytest.raises(WorkerMismatch):
        introduced("http://h:1", tree, None)
