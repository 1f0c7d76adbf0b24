"""The checks of ``doctor --gpu-check``, on the CPU at a tiny shape."""

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
                 "attention sdpa", "released structure", "compiled", "matrix product"):  # fmt: skip
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


def test_no_check_begins_after_the_limit_and_a_failing_one_is_a_row(monkeypatch):
    def fail(self):
        raise torch.OutOfMemoryError("too large\nfor this card")

    monkeypatch.setattr(gpu._Checks, "passes", fail)
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    first, *others, last = gpu.run(SMALL, Silent())
    assert {row.verdict for row in (first, *others)} == {"not run"}
    assert last.verdict == "ok"
    monkeypatch.setattr(gpu, "LIMIT", 1e-9)
    monkeypatch.setattr(gpu.time, "monotonic", iter([0.0, 0.0, 0.0, *[1.0] * 20]).__next__)
    first, *others = gpu.run(SMALL, Silent())
    assert (first.verdict, first.figure) == ("failed", "OutOfMemoryError: too large for this card")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure this GPU")
def test_without_a_gpu_it_is_refused_in_one_line(flowopd):
    code, out, err = flowopd("doctor", "--gpu-check")
    assert (code, out) == (2, "")
    assert err.strip().splitlines() == [
        "flowopd: error: doctor --gpu-check needs a CUDA device, and PyTorch sees none: flowopd doctor says why"
    ]
