"""The checks of ``doctor --gpu-check``, on the CPU at a tiny shape."""

import signal
import time
from contextlib import suppress

import pytest
import torch

from flowopd_cli.stages.bench import gpu
from flowopd_cli.system.progress import Silent

SMALL = gpu.Size("small", 64, 16, pictures=2, steps=3, device="cpu", compile="eager", repeats=1)


@pytest.fixture(scope="module")
def rows():
    """The whole table at the smallest size."""
    return {row.check: row for row in gpu.run(SMALL, Silent())}


@pytest.mark.slow
def test_every_check_runs(rows):
    assert not [row for row in rows.values() if row.verdict in {"failed", "not run"}]
    checks = " ".join(rows)
    for part in ("one pass", "replay", "checkpointing", "int8", "nf4", "teacher by nft", "teacher by grpo",
                 "attention sdpa", "released structure", "compiled", "matrix product",
                 "norm of its gradient"):  # fmt: skip
        assert part in checks


@pytest.mark.slow
def test_equal_mathematics_agrees(rows):
    for name in ("gradient of replay", "checkpointing, gradient", "compiled, gradient", "attention sdpa-math"):
        (row,) = [row for check, row in rows.items() if check.startswith(name)]
        assert row.verdict == "ok", row
    for name in ("base in int8, velocity off by", "base in nf4, velocity off by"):
        assert 0 < float(rows[name].figure) < float(rows[name].target)


def test_the_first_check_alone():
    rows = {row.check: row for row in gpu._Checks(SMALL).passes()}
    assert rows["gradient of replay, off by"].verdict == "ok"
    assert {"device", "one pass, 2 pictures", "one pass, peak"} <= rows.keys()


@pytest.mark.parametrize("algorithm", ["nft", "grpo"])
def test_a_teachers_iteration_has_a_gradient_and_an_estimate(algorithm, monkeypatch):
    def compared(name, peak, recipe, device, dtype):
        assert gpu._estimate(recipe, dtype) > 0
        return gpu.Row(name, str(peak))

    monkeypatch.setattr(gpu, "_memory", compared)
    speed, gradient, peak = gpu._Checks(SMALL).teacher(algorithm)
    assert "pictures a second" in speed.figure
    assert gradient.verdict == "ok"
    assert int(peak.figure) > 0


def test_a_policy_without_a_gradient_misses_its_target(monkeypatch):
    figures = {"seconds": 1.0, "images_per_second": 2.0, "grad_norm": 0.0, "peak_memory_bytes": 1}
    monkeypatch.setattr(
        gpu.teachers, "run", lambda *_: {"algorithms": {"nft": figures}, "machine": {"dtype": "float32"}}
    )
    _, gradient, _ = gpu._Checks(SMALL).teacher("nft")
    assert gradient.verdict == "missed"


def replace_checks(monkeypatch, **checks):
    monkeypatch.setattr(gpu, "_free", lambda: None)  # it takes seconds in a process with many objects
    monkeypatch.setattr(gpu._Checks, "named", lambda self: {name.replace("_", " "): c for name, c in checks.items()})


def fine():
    yield gpu.Row("figure", "1")


def failing():
    yield gpu.Row("first half", "1")
    raise torch.OutOfMemoryError("too large\nfor this card")


def figures(rows):
    return [(row.check, row.figure, row.verdict) for row in rows[:-1]]


ERROR = "OutOfMemoryError: too large for this card"


def test_a_failing_check_is_a_row_after_those_that_it_has_made(monkeypatch):
    replace_checks(monkeypatch, one_pass=fine, teacher=failing, attention=fine)
    expected = [("figure", "1", ""), ("first half", "1", ""), ("teacher", ERROR, "failed"), ("figure", "1", "")]
    assert figures(gpu.run(SMALL, Silent())) == expected


def test_nothing_is_compared_with_a_first_check_that_failed(monkeypatch):
    replace_checks(monkeypatch, one_pass=failing, attention=fine)
    rows = figures(gpu.run(SMALL, Silent()))
    assert rows[1:] == [("one pass", ERROR, "failed"), ("attention", "the first check has failed", "not run")]


def test_no_check_begins_after_the_limit(monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    *rows, last = gpu.run(SMALL, Silent())
    assert {row.verdict for row in rows} == {"not run"}
    assert last.verdict == "ok"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")
def test_a_check_that_does_not_end_is_stopped(monkeypatch):
    def endless():
        yield gpu.Row("first half", "1")
        while True:
            with suppress(Exception):
                time.sleep(60)

    replace_checks(monkeypatch, one_pass=fine, compiled=endless, attention=fine)
    monkeypatch.setattr(gpu, "LIMIT", 2.0)
    monkeypatch.setattr(gpu, "STOP", 2.1)
    before = signal.getsignal(signal.SIGALRM)
    rows = figures(gpu.run(SMALL, Silent()))
    assert rows[1:] == [
        ("first half", "1", ""),
        ("compiled", "stopped after 2 s in all", "not run"),
        ("attention", "no time left", "not run"),
    ]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure this GPU")
def test_without_a_gpu_it_is_refused_in_one_line(flowopd):
    code, out, err = flowopd("doctor", "--gpu-check")
    assert (code, out) == (2, "")
    assert err.strip().splitlines() == [
        "flowopd: error: doctor --gpu-check needs a CUDA device, and PyTorch sees none: flowopd doctor says why"
    ]
