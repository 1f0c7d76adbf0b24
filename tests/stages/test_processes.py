"""Several processes train what one trains: the same weights and metrics, and they stop together."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import copies

import flowopd_cli
from flowopd_cli import recipe as recipes
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages import coldstart, distill, teacher

TESTS, PACKAGE = Path(__file__).resolve().parent.parent, Path(flowopd_cli.__file__).parent.parent
SHARDED = ("teacher", "nft", "coldstart", "distill", "fused", "saving", "few")
NAMES = (*SHARDED, "awm", "full", "sparse", "thinned", "soft", "fresh", "ended", "few-fused", "one-group", "kept")
COUNTS = ("two", "shards")
CASES = [(count, name) for count, names in (("two", NAMES), ("shards", SHARDED)) for name in names]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pipeline_folder, forks):
    """The directory with the runs of one process, ``one``, and of two, ``two``."""
    root = tmp_path_factory.mktemp("copies")
    copies.prepare(root, pipeline_folder)
    for name in ("one", *COUNTS):
        (root / "runs" / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for stage in (coldstart, distill, teacher):
            patch.setattr(stage, "load_model", stage.load_model)
        copies.runs(root, root / "runs" / "one", pipeline_folder)
    copy_twice(forks, root, root / "runs" / "two", pipeline_folder, shard=False)
    return root / "runs"


@pytest.fixture(scope="module")
def by_shards(trained, pipeline_folder, forks):
    """The same directory, now with what two processes made that have half of the base each."""
    copy_twice(forks, trained.parent, trained / "shards", pipeline_folder, shard=True)
    return trained


@pytest.fixture
def several(count, trained, request):
    """The directory with the runs of two processes."""
    return request.getfixturevalue("by_shards" if count == "shards" else "trained") / count


def environment():
    """The environment of a process on the CPU."""
    path = os.pathsep.join(map(str, (PACKAGE, TESTS)))
    return {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def copy_twice(forks, *places, shard):
    """The runs of two processes."""
    code = f"from support import copies; copies.copy(*{[str(place) for place in places]}, shard={shard})"
    ended = forks.run("--version", before=code, ranks=2)
    assert ended.code == 0, ended.err[-3000:]


def start(launcher, *argv):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", launcher, *argv], env=environment(), **pipes)


def finish(launcher):
    """The output of its processes."""
    try:
        output, errors = launcher.communicate(timeout=240)
    finally:
        launcher.terminate()  # which ends its copies, should they wait for each other
    assert launcher.returncode == 0, errors[-3000:]
    return output


def finish_all(launchers):
    """The output of each; all are ended as soon as one fails, which the others would wait for."""
    with ThreadPoolExecutor(len(launchers)) as pool:
        ends = [pool.submit(finish, launcher) for launcher in launchers]
        first = wait(ends, return_when=FIRST_EXCEPTION).done
        for launcher in launchers:
            launcher.terminate()
        for end in first:
            end.result()
        return [end.result() for end in ends]


def tensors(adapter):
    (file,) = adapter.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("count", "name"), CASES)
def test_several_processes_train_the_weights_of_one(trained, several, pipeline_folder, name):
    one, two = (tensors(folder / name / "adapter") for folder in (trained / "one", several))
    start = tensors(trained.parent / "start")
    if name == "full":  # it starts from the base with that adapter, which has no biases
        start = {key: value for key, value in tensors(pipeline_folder / "transformer").items() if "bias" in key}
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-7, rtol=0)  # a rounding to float32 may tip over
    assert max(float((one[key] - value).abs().max()) for key, value in start.items()) > 1e-3


@pytest.mark.parametrize(("count", "name"), CASES)
def test_several_processes_log_the_figures_of_one(trained, several, name):
    one, two = (RunDir(folder / name).rows() for folder in (trained / "one", several))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        figures = {key: value for key, value in theirs.items() if not key.startswith("seconds")}
        assert {key: ours[key] for key in figures} == pytest.approx(figures, rel=1e-4, abs=1e-7)
    if name in {"teacher", "distill", "fused", "thinned"}:
        assert 0 < one[0]["invalid"] < 1
    if name in {"nft", "few"}:
        distance = "watch/kl_base" if name == "few" else "watch/distance_base"
        watched = [row[distance] for row in one if distance in row]
        assert one[0]["iteration"] == 0
        assert min(watched) > 0  # it starts from an adapter
        assert watched[0] != watched[-1]
    if name == "kept":
        assert one[0]["kl/a"] == pytest.approx(0, abs=1e-12)
        assert one[-1]["kl/a"] > 1e-9
    if name in {"nft", "awm"}:
        assert sum(row.get("refilled", 0) for row in one) > 0
    if name in {"awm", "fresh"}:
        assert sum(row["resampled_groups"] for row in one) > 0
        assert sum(row["flat_groups"] for row in one) > 0


def test_each_process_holds_its_shard_of_the_base(by_shards):
    held = [json.loads((by_shards / "shards" / f"held-{rank}").read_text()) for rank in (0, 1)]
    (whole,) = {of for _, of in held}
    assert sum(own for own, _ in held) == whole
    assert max(own for own, _ in held) < 0.55 * whole


@pytest.mark.parametrize("count", COUNTS)
def test_several_processes_draw_the_sample_pictures_of_one(trained, several):
    one, two = (
        {path.name: path for path in RunDir(folder / "few").samples_dir.glob("*.png")}
        for folder in (trained / "one", several)
    )
    assert sorted(one) == sorted(two)
    assert one
    for name, path in one.items():
        pictures = [np.asarray(Image.open(file)).astype(int) for file in (path, two[name])]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1  # a rounding to bytes may tip over


def test_a_signal_to_one_process_stops_both_after_the_same_iteration(trained):
    assert {path.name for path in (trained / "two").glob("stopped-*")} == {"stopped-0", "stopped-1"}
    run = RunDir(trained / "two" / "stopped")
    assert run.manifest().status == "interrupted"
    assert [row["iteration"] for row in run.rows()] == [1]
    assert run.checkpoints.newest()[0] == 1


def test_train_stop_ends_both_and_keeps_the_checkpoint_of_one(trained):
    for folder in (trained / "one", trained / "two"):
        run = RunDir(folder / "ended")
        assert run.manifest().status == "done"
        assert [row["iteration"] for row in run.rows()] == [1, 2]
        assert run.manifest().metrics["best_iteration"] == 1
        best = tensors(run.best_dir)
        assert all(torch.equal(best[key], value) for key, value in tensors(run.adapter_dir).items())


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_accelerate_starts_the_same_command_on_two_machines(trained, pipeline_folder, tmp_path):
    built = copies.recipe("teacher", trained.parent, pipeline_folder, iterations=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipes.dump(built))
    outs = [tmp_path / name for name in ("first", "second")]
    shared = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    shared += ["--main_process_port", str(free_port()), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = ["-m", "flowopd_cli", "teacher", "--allow-code", "--recipe", str(recipe)]
    machines = [
        start("accelerate.commands.launch", *shared, "--machine_rank", str(rank), *command, "--out", str(out))
        for rank, out in enumerate(outs)
    ]
    assert finish_all(machines) == [f"{outs[0]}\n", ""]
    assert not outs[1].exists()
    alone = copies.train(tmp_path / "alone", built)
    (row,), (expected,) = RunDir(outs[0]).rows(), alone.rows()
    figures = {key: value for key, value in expected.items() if not key.startswith("seconds")}
    assert {key: row[key] for key in figures} == pytest.approx(figures, rel=1e-3, abs=1e-5)  # float32


@pytest.mark.parametrize("shard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_error_in_one_process_is_one_line_and_keeps_a_checkpoint(trained, pipeline_folder, forks, tmp_path, shard):
    built = copies.recipe("teacher", trained.parent, pipeline_folder, rollout_batch=64, checkpoint_every=50)
    failing = tuple(spec.model_copy(update={"name": "support.copies:Fails"}) for spec in built.rewards)
    model = built.model_copy(update={"rewards": failing, "model": built.model.model_copy(update={"shard": shard})})
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(recipes.dump(model))
    ended = forks.run("teacher", "--allow-code", "--recipe", recipe, "--out", out, ranks=2)
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if "error" in line.lower()]
    assert errors == ["flowopd: error: the worker of the second process is gone"]
    assert "Traceback" not in ended.err
    run = RunDir(out)
    assert run.manifest().status == "failed"
    assert run.checkpoints.newest()[0] == len(run.rows()) >= 1
