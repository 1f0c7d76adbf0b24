"""The reward, suite and model that the add_a_* pages show work as they stand there."""

import json
import sys
from importlib import util

import pages
import pytest
from safetensors.torch import save_file
from support import toyruns

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

SMALL = [*toyruns.changes(*toyruns.SMALL, "train.iterations=1", "train.sample_every=0", "train.keep_best=null")]
EVAL = toyruns.changes("eval.limit=4", "eval.images=1", "eval.steps=2")


def install(page, folder):
    """Write the files of a page, and what pip would say of a package made of them; the source that finds it."""
    folder.mkdir()
    for block in (block for block in pages.BLOCKS if block.page == page and block.file):
        (folder / block.file).write_text(block.text)
    info = folder / "own_parts-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 0.1\n")
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in rows.items()) for group, rows in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return f"import sys, os; sys.path.insert(0, {str(folder)!r}); os.chdir({str(folder)!r})"


def test_the_suite_and_its_prompts(forks, tmp_path):
    before = install("docs/add_a_suite.md", tmp_path / "suite")
    ended = forks.run("eval", "--suite", "blue,quality", *EVAL, "--out", tmp_path / "e", before=before)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "e/eval/blue.json").read_text())
    assert (result["n"], result["version"]) == (4, "blue-1")
    assert set(result["by_tag"]) == {"sky", "sea"}
    trained = forks.run(
        "teacher", "--reward", "quality", "--prompts", "blue", *SMALL, "--out", tmp_path / "t", before=before
    )
    assert trained.code == 0, trained.err


def test_the_model(forks, tmp_path):
    folder = tmp_path / "model"
    before = install("docs/add_a_model.md", folder)
    found = util.spec_from_file_location("my_family", folder / "my_family.py")
    family = util.module_from_spec(found)
    found.loader.exec_module(family)
    base = folder / "my-base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    save_file(family.Network().state_dict(), base / "network.safetensors")
    ended = forks.run("teacher", "--recipe", "pixels.yaml", "--out", tmp_path / "t", before=before)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "t/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert rows[-1]["grad_norm"] > 0


def test_the_shortest_reward(forks, tmp_path):
    """The whole one is run by test_blocks.py."""
    text = next(b.text for b in pages.BLOCKS if b.page == "docs/add_a_reward.md" and b.language == "python")
    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / "short_rewards.py").write_text(text)
    argv = ["teacher", "--reward", "short_rewards:brightness", "--prompts", "toy:geneval", *SMALL]
    argv += toyruns.changes("rewards.0.options.gain=2")
    ended = forks.run(*argv, "--out", tmp_path / "t", before=f"import os; os.chdir({str(folder)!r})")
    assert ended.code == 0, ended.err
    row = json.loads((tmp_path / "t/metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["reward"] < 2
