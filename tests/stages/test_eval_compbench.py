"""GenEval, OCR and T2I-CompBench on the toy base, by tiny judges: killed, resumed, other batches, two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_compbench import blip, save_depth, save_dino, save_original_blip
from support.tiny_scorers import save_clip

from flowopd_cli.runs.run import RunDir
from flowopd_cli.suites.compbench import CATEGORIES
from flowopd_cli.system.files import sha256_file

SENTENCES = {
    "spatial": "a {0} dog on the left of a {1} cat",
    "3d_spatial": "a {0} dog behind a {1} cat",
    "numeracy": "two dogs and three cats near a {0} {1} boat",
    "non_spatial": "a {0} man is next to a {1} boat",
    "complex": "The {0} key is on the left of the {1} bowl.",
}
FLOWOPD = (sys.executable, "-m", "flowopd_cli")
COLORS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink", "purple")
LIMIT = 8


def settings(name, overrides, root):
    folders = {"folder": "prompts", "blip": "blip/model_base_vqa.pth", "tokenizer": "blip", "clip": "clip"}
    options = {key: str(root / path) for key, path in {**folders, "depth": "depth"}.items()}
    options |= {"detector": f"grounding-dino={root / 'dino'}", "parser": "builtin"}
    options["blip"] += f"#sha256={sha256_file(Path(options['blip']))}"
    argv = ["eval", "--suite", "geneval,ocr,t2i-compbench", "--limit", str(LIMIT), "--images-per-prompt", "1"]
    values = {"eval.options": {"t2i-compbench": options}, "eval.steps": 2, "eval.batch": 8, **overrides}
    argv += [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [*argv, "--out", str(root / name)]


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(sys.path), HF_HUB_OFFLINE="1")


def perform(path, *argv):
    done = subprocess.run([*FLOWOPD, *argv], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return RunDir.open(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("compbench")
    for name, save in (("dino", save_dino), ("depth", save_depth), ("clip", save_clip)):
        (made / name).mkdir()
        save(made / name)
    save_original_blip(made / "blip", blip())
    (made / "prompts").mkdir()
    for category in CATEGORIES:
        sentence = SENTENCES.get(category, "a {0} bench and a {1} bowl")
        lines = [sentence.format(color, COLORS[-1 - i]) for i, color in enumerate(COLORS)]
        (made / "prompts" / f"{category}_val.txt").write_text("\n".join(lines))
    for kind, line in (("spatial", 0), ("action", 1)):
        text = SENTENCES["complex"].format(COLORS[line], COLORS[-1 - line])
        (made / "prompts" / f"complex_val_{kind}.txt").write_text(text)
    return made


@pytest.fixture(scope="module")
def whole(root):
    return perform(root / "whole", *settings("whole", {}, root))


def rows(run):
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in run.eval_dir.glob("*.jsonl")
    }


def pngs(run):
    return {path.relative_to(run.path).as_posix(): path.stat().st_mtime_ns for path in run.images_dir.rglob("*.png")}


def test_every_category_is_judged_and_named_after_its_judge(whole):
    found = rows(whole)
    assert len(found) == len(CATEGORIES) + 2
    assert all(len(own) == LIMIT for own in found.values())
    assert "t2i-compbench-spatial[grounding-dino]" in found
    total = json.loads(whole.eval_file("t2i-compbench").read_text())
    assert len(total["parts"]) == 4
    assert len(total["experimental"]) == 4


def test_a_killed_evaluation_goes_on_and_draws_nothing_twice(root, whole):
    command = [*FLOWOPD, *settings("killed", {}, root)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = root / "killed" / "images"
    while len(list(folder.rglob("*.png"))) < 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = pngs(RunDir.open(root / "killed"))
    assert 20 <= len(before) < len(pngs(whole))
    run = perform(root / "killed", "eval", "--resume", str(root / "killed"))
    after = pngs(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() == pngs(whole).keys()
    assert rows(run) == rows(whole)
