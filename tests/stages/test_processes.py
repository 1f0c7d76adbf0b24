"""Two processes train what one trains: the same weights, the same figures, the same moment to stop."""

import os
import subprocess
import sys
from pathlib import Path

import copies
import pytest
import torch
from safetensors.torch import load_file

import flowopd_cli
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _model

TESTS, PACKAGE = Path(__file__).resolve().parent.parent, Path(flowopd_cli.__file__).parent.parent
NAMES = ("teacher", "coldstart", "distill", "sparse", "fused", "thinned")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pipeline_folder):
    """The directory with what one process made, ``one``, and what two made, ``two``."""
    root = tmp_path_factory.mktemp("copies")
    copies.prepare(root, pipeline_folder)
    for name in ("one", "two"):
        (root / "runs" / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_model, "load_model", _model.load_model)
        copies.runs(root, root / "runs" / "one", pipeline_folder)
    path = os.pathsep.join(map(str, (PACKAGE, TESTS)))
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [copies.__file__, str(root), str(root / "runs" / "two"), str(pipeline_folder)]
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, said = launcher.communicate(timeout=240)
    finally:
        launcher.terminate()  # which ends its copies, should they wait for each other
    assert launcher.returncode == 0, said[-3000:]
    return root / "runs"


def tensors(adapter):
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_the_weights_of_one(trained, name):
    one, two = (tensors(trained / count / name / "adapter") for count in ("one", "two"))
    start = tensors(trained.parent / "start")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-7, rtol=0)  # a rounding to float32 may tip over
    assert max(float((value - start[key]).abs().max()) for key, value in one.items()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_log_the_figures_of_one(trained, name):
    one, two = (RunDir(trained / count / name).rows() for count in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        kept = {key: value for key, value in theirs.items() if not key.startswith("seconds")}
        assert {key: ours[key] for key in kept} == pytest.approx(kept, rel=1e-4, abs=1e-7)
    rewarded = name in {"teacher", "distill", "fused", "thinned"}
    assert [0 < row.get("invalid", 0) < 1 for row in one[:2]] == [rewarded, name == "teacher"]


def test_a_stop_that_one_process_was_asked_for_stops_both_after_the_same_iteration(trained):
    assert {path.name for path in (trained / "two").glob("stopped-*")} == {"stopped-0", "stopped-1"}
    run = RunDir(trained / "two" / "stopped")
    assert run.manifest().status == "interrupted"
    assert [row["iteration"] for row in run.rows()] == [1]
    assert run.latest_checkpoint()[0] == 1
