"""The cost of one more teacher and one more process, and start-up times. The slow tests need an idle machine."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel
from support import copies

import flowopd_cli
from flowopd_cli.runs.run import RunDir

PACKAGE = Path(flowopd_cli.__file__).parent.parent
FREE = ["adapter.init=null", "anchor.ref=base"]
FREE += [f"routing.{task}.ref=base" for task in ("geneval", "ocr", "preference")]
PEAK = """
import resource, sys
from flowopd_cli.cli.commands import bench as cli_bench
from flowopd_cli.stages.bench import structures
from flowopd_cli.stages.bench.world import build
tree, where = cli_bench.starting_point(None, None, "small")
roles = cli_bench.Roles(int(sys.argv[1]), True, None)
recipe = cli_bench.distillation(tree, where, {}, roles, ["sampling.steps=3", "adapter.rank=32"])
structures.fused(build(recipe, 16, real_prompts=False))()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def python(*argv, folder=None):
    """Run Python on one thread in ``folder``: its output and its CPU seconds."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *map(str, argv)], env=environment, cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def distill(folder, out, *settings, more=()):
    """The toy's distillation of the bare base into itself."""
    flags = [word for text in [*FREE, *settings] for word in ("--set", text)]
    return python("-m", "flowopd_cli", "distill", "--recipe", "toy/distill", "--out", out, *flags, *more, folder=folder)


@pytest.mark.slow
def test_eight_teachers_take_the_memory_of_one():
    one, eight = (min(int(python("-c", PEAK, count)[0]) for _ in range(3)) for count in (1, 8))
    print(f"peak with 1 teacher {one / 1024:.0f} MiB, with 8 {eight / 1024:.0f} MiB: x {eight / one:.3f}")
    assert eight <= 1.05 * one


def test_the_weights_are_read_once_however_many_adapters(tmp_path, pipeline_folder, monkeypatch):
    copies.prepare(tmp_path, pipeline_folder)
    loads, load = [], SD3Transformer2DModel.from_pretrained.__func__
    counted = classmethod(lambda cls, *args, **options: loads.append(args) or load(cls, *args, **options))
    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", counted)
    built = copies.recipe("distill", tmp_path, pipeline_folder, iterations=1)
    copies.train(tmp_path / "run", built)
    assert len({built.adapter.init, *(spec.ref for spec in built.routing.values())}) == 3
    assert len(loads) == 1


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_have_nearly_twice_the_throughput_of_one(tmp_path):
    """Whole iterations of a distillation, its synchronization included, one thread each; the first is a warm-up."""
    seconds = {}
    for turn in range(3):
        for count in (1, 2):
            out = tmp_path / f"run-{count}-{turn}"
            settings = ["train.iterations=6", "train.sample_every=0", "train.checkpoint_every=100"]
            distill(tmp_path, out, *settings, more=["--processes", count])
            rows = RunDir(out).rows()[1:]
            seconds.setdefault(count, []).extend(row["seconds_collect"] + row["seconds_learn"] for row in rows)
    one, two = (statistics.median(seconds[count]) for count in (1, 2))
    print(f"an iteration of 64 pictures: {one:.3f} s in one process, {two:.3f} s in two: x {one / two:.2f}")
    assert one / two >= 1.8


@pytest.mark.slow
def test_a_command_begins_soon(tmp_path):
    """The help, a dry run, and a training from the command to the end of its first optimizer step."""
    help_, dry, first = [], [], []
    flags = [word for text in FREE for word in ("--set", text)]
    for turn in range(5):
        help_.append(python("-m", "flowopd_cli", "--help", folder=tmp_path)[1])
        command = ("-m", "flowopd_cli", "distill", "--recipe", "toy/distill", *flags, "--dry-run")
        dry.append(python(*command, folder=tmp_path)[1])
        first.append(distill(tmp_path, tmp_path / f"run-{turn}", "train.iterations=1", "train.sample_every=0")[1])
    medians = [statistics.median(times) for times in (help_, dry, first)]
    print("help {:.2f} s, dry run {:.2f} s, a run of one optimizer step {:.2f} s".format(*medians))
    assert medians[0] < 0.4
    assert medians[1] < 8
    assert medians[2] < 8
