"""LongText-Bench and CVTG-2K on the toy base, by a tiny Qwen2.5-VL, a tiny CLIP and the real rapidocr."""

import json
import os
import subprocess
import sys

import pytest
from support.recorders import StopAt
from support.tiny_reader import save_reader
from support.tiny_scorers import save_clip

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import Interrupted
from flowopd_cli.runs.run import RunDir
from flowopd_cli.suites.cvtg import FOLDERS
from flowopd_cli.system.progress import Silent

pytestmark = pytest.mark.slow
SUITES = ("longtext-bench-en", "longtext-bench-zh", "cvtg-2k-accuracy", "cvtg-2k-clipscore")
LIMIT = 3
SMALL = (
    "eval.suites=[longtext-bench,cvtg-2k]",
    f"eval.limit={LIMIT}",
    "eval.images=1",
    "eval.steps=2",
    "eval.split=test",
)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """The settings of the recipe, with tiny models and small files of prompts."""
    folder = tmp_path_factory.mktemp("texts")
    for name, save in (("reader", save_reader), ("clip", save_clip)):
        (folder / name).mkdir()
        save(folder / name)
    for name, sentence in (("text_prompts", "a sign that says {}"), ("text_prompts_zh", "路牌 {}")):
        rows = [{"prompt": sentence.format(word), "text": [word], "prompt_id": i} for i, word in enumerate("abcd")]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in FOLDERS:
        (folder / name).parent.mkdir(exist_ok=True)
        rows = [{"index": 0, "prompt": f"a sign 'go' of {name}"}]
        (folder / f"{name}.json").write_text(json.dumps({"data_list": rows}))
    reader = {"source": str(folder / "reader"), "dtype": "float32", "max_tokens": 4, "prompts": str(folder)}
    quoted = {"reader": "rapidocr", "clip": str(folder / "clip"), "prompts": str(folder)}
    return (*SMALL, f"eval.options={json.dumps({'longtext-bench': reader, 'cvtg-2k': quoted})}")


def perform(path, *overrides, resume=False, progress=None):
    built = recipes.load(recipes.find("toy/eval"), overrides=overrides)
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    run_stage(Plan.of(built), run, progress or Silent(), resume=resume)
    return run


def rows(run):
    lines = {name: (run.eval_dir / f"{name}.jsonl").read_text().splitlines() for name in SUITES}
    return {name: [json.loads(line) for line in some] for name, some in lines.items()}


def test_rows_do_not_depend_on_kills_batches_and_processes(overrides, tmp_path):
    run = perform(tmp_path / "one", *overrides, "eval.batch=8")
    expected = rows(run)
    assert all(len(own) == LIMIT and all(row["valid"] for row in own) for own in expected.values())
    assert (run.images_dir / "longtext-bench-zh" / "0002_1.png").is_file()
    assert (run.images_dir / "cvtg-2k" / "CVTG-Style" / "3" / "0.png").is_file()
    with pytest.raises(Interrupted):
        perform(tmp_path / "killed", *overrides, "eval.batch=2", progress=StopAt(2))
    resumed = rows(perform(tmp_path / "killed", *overrides, "eval.batch=2", resume=True))
    single = rows(perform(tmp_path / "single", *overrides, "eval.batch=1"))
    argv = ["eval", "--recipe", "toy/eval", "--processes", "2", "--out", str(tmp_path / "two")]
    argv += [part for override in overrides for part in ("--set", override)]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-m", "flowopd_cli", *argv]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=480)
    for other in (resumed, single, rows(RunDir.open(tmp_path / "two"))):
        for name, own in other.items():
            assert [(row["prompt"], row["details"]) for row in own] == [
                (row["prompt"], row["details"]) for row in expected[name]
            ]
            assert [row["value"] for row in own] == pytest.approx([row["value"] for row in expected[name]], abs=1e-4)
