"""DrawBench by judges that are language models, tiny ones, on the toy base: resume, batches and processes."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from support.recorders import StopAt
from support.scripted import Scripted
from support.tiny_qwen_vl import INSTRUCTION, save_hpsv3

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import Interrupted
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

pytestmark = pytest.mark.slow
SMALL = ("eval.suites=[drawbench]", "eval.steps=2", "eval.limit=5", "eval.images=1", "eval.split=test")
COLUMNS = ("drawbench-hpsv3", "drawbench-unifiedreward")


def judged(server, handler):
    """A score that is a function of picture and question."""
    score = 1 + hashlib.sha256(handler.body).digest()[0] % 5
    choice = {"message": {"role": "assistant", "content": f"Final Score: {score}"}, "finish_reason": "stop"}
    content = json.dumps({"choices": [choice]}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """The settings of the recipe, with a tiny HPSv3, a server in the place of UnifiedReward, and five prompts."""
    folder, server = tmp_path_factory.mktemp("judges"), Scripted(judged)
    save_hpsv3(folder)
    for name, text in (("hpsv3", INSTRUCTION), ("unifiedreward", "{prompt}?"), ("prompts", "a\nb b\nc\nd d d\ne")):
        (folder / f"{name}.txt").write_text(text)
    hpsv3 = {"source": str(folder), "base": str(folder), "dtype": "float32", "instruction": f"{folder}/hpsv3.txt"}
    unified = {"url": f"{server.url}/v1", "model": "m", "instruction": f"{folder}/unifiedreward.txt"}
    options = {
        "prompts": f"{folder}/prompts.txt",
        "scorers": ["hpsv3", "unifiedreward"],
        "options": {"hpsv3": hpsv3, "unifiedreward": unified},
    }
    yield (*SMALL, f"eval.options={json.dumps({'drawbench': options})}")
    server.close()


def perform(path, *overrides, resume=False, progress=None):
    built = recipes.load(recipes.find("toy/eval"), overrides=overrides)
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    run_stage(Plan.of(built), run, progress or Silent(), resume=resume)
    return run


def values(run):
    rows = {name: (run.eval_dir / f"{name}.jsonl").read_text().splitlines() for name in COLUMNS}
    return {(n, row["prompt"]): row["value"] for n, lines in rows.items() for row in map(json.loads, lines)}


def test_values_do_not_depend_on_kills_batches_and_processes(overrides, tmp_path):
    expected = values(perform(tmp_path / "one", *overrides, "eval.batch=8"))
    assert len(expected) == 10
    assert all(len({value for (name, _), value in expected.items() if name == column}) > 1 for column in COLUMNS)
    with pytest.raises(Interrupted):
        perform(tmp_path / "killed", *overrides, "eval.batch=2", progress=StopAt(2))
    resumed = perform(tmp_path / "killed", *overrides, "eval.batch=2", resume=True)
    runs = [resumed, perform(tmp_path / "single", *overrides, "eval.batch=1")]
    argv = ["eval", "--recipe", "toy/eval", "--processes", "2", "--out", str(tmp_path / "two")]
    argv += [part for override in overrides for part in ("--set", override)]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-m", "flowopd_cli", *argv]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=480)
    for run in (*runs, RunDir.open(tmp_path / "two")):
        assert values(run) == pytest.approx(expected, abs=1e-4)
