"""DPG-Bench on the toy base by a worker over a stand-in for its judge: grids, resume, batches and processes."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from support.dpg_bench import serving, some_rows, write_csv
from support.recorders import StopAt

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError, Interrupted, RecipeError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages import eval as stage
from flowopd_cli.system.progress import Silent

ITEMS = ("12", "partiprompts97", "whoops3")
SMALL = ("eval.suites=[dpg-bench]", "eval.steps=1", "eval.split=test", "eval.batch=8")
COUNT = 4 * len(ITEMS)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The suite's options: a small file of questions, and the worker's address."""
    folder = tmp_path_factory.mktemp("worker")
    path = write_csv(folder / "dpg_bench.csv", some_rows(ITEMS))
    with serving(folder) as worker:
        yield f"eval.options={json.dumps({'dpg-bench': {'prompts': str(path), 'url': worker.url}})}"


def perform(path, *overrides, resume=False, progress=None):
    built = recipes.load(recipes.find("toy/eval"), overrides=[*SMALL, *overrides])
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    run_stage(Plan.of(built), run, progress or Silent(), resume=resume)
    return run


def rows(run):
    lines = (run.eval_dir / "dpg-bench.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "picture"} for line in lines]


def result(run):
    return json.loads(run.eval_file("dpg-bench").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory, options):
    return perform(tmp_path_factory.mktemp("eval") / "e", options)


def test_pictures_are_judged_and_joined_to_the_grids_that_the_reference_cuts(done):
    summary, lines = result(done), rows(done)
    assert (summary["n"], summary["prompts"], summary["exact"], summary["reward"]) == (COUNT, 3, False, "dpg-bench")
    assert summary["mean"] == pytest.approx(sum(line["value"] for line in lines) / COUNT)
    assert {"L1 attribute", "L1 entity", "L1 global", "L2 attribute - color"} <= summary["figures"].keys()
    assert summary["weights"]["model"].startswith("sha256:")
    folder = done.images_dir / "dpg-bench"
    grids = sorted(path.name for path in (folder / "grids").iterdir())
    assert grids == [f"{item}.png" for item in sorted(ITEMS)]
    with Image.open(folder / "grids" / "partiprompts97.png") as grid:
        side = grid.width // 2
        for index, corner in enumerate([(0, 0), (side, 0), (0, side), (side, side)]):
            part = grid.crop((*corner, corner[0] + side, corner[1] + side))
            with Image.open(folder / "samples" / f"00001_{index:03d}.png") as picture:
                assert part.tobytes() == picture.tobytes()


def test_grids_of_another_program_are_cut_and_scored(done, options, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("no model is needed"))
    folder = done.images_dir / "dpg-bench" / "grids"
    run = perform(tmp_path / "e", options, f"eval.pictures={folder}")
    assert rows(run) == rows(done)
    assert not run.images_dir.exists()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.crop((0, 0, picture.width - 1, picture.height)).save(theirs / path.name)
    with pytest.raises(ArtifactError, match=r"pixels are not 2 x 2 pictures"):
        perform(tmp_path / "odd", options, f"eval.pictures={theirs}")
    (theirs / "12.png").unlink()
    with pytest.raises(RecipeError, match="4 of 12 pictures are missing"):
        perform(tmp_path / "none", options, f"eval.pictures={theirs}")


def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(done, options, tmp_path):
    with pytest.raises(Interrupted):
        perform(tmp_path / "e", options, progress=StopAt(1))
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "e").rglob("*.png")}
    assert 0 < len(drawn) < COUNT
    run = perform(tmp_path / "e", options, resume=True)
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items())
    assert rows(run) == rows(done)
    assert result(run) == result(done)


def test_batches_of_one_give_the_same_rows(done, options, tmp_path):
    assert rows(perform(tmp_path / "e", options, "eval.batch=1")) == rows(done)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(done, options, tmp_path):
    argv = ["eval", "--recipe", "toy/eval", "--processes", "2", "--out", str(tmp_path / "e")]
    argv += [part for override in (*SMALL, options) for part in ("--set", override)]
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    subprocess.run([sys.executable, "-m", "flowopd_cli", *argv], check=True, env=env, capture_output=True, timeout=240)
    run = RunDir.open(tmp_path / "e")
    assert rows(run) == rows(done)
    assert len(list((run.images_dir / "dpg-bench" / "grids").iterdir())) == len(ITEMS)
