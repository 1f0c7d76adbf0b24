"""The recipes for Stable Diffusion 3.5: each states its cost, and takes two optimizer steps on a tiny base."""

import re
from pathlib import Path

import pytest
import yaml
from support import copies
from support.tiny import TEXTS
from typer.testing import CliRunner

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.app import app

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.glob("sd35m/*.yaml"))
TRAINED = [name for name in NAMES if not name.endswith(("merge", "eval-all"))]


def tree_of(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_states_steps_images_and_memory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [tree_of(name)["stage"], "--recipe", name, "--dry-run"])
    assert done.exit_code == 0, done.output
    recipe = recipes.load(recipes.find(name))
    absent = [line for line in done.stderr.splitlines() if "is not there yet" in line]
    assert bool(absent) == (recipe.stage in {"coldstart", "merge", "distill"})
    if name in TRAINED:
        steps = recipe.train.iterations * (1 if recipe.stage == "coldstart" else recipe.train.updates)
        assert re.search(rf"optimizer steps +{steps:,}\n", done.stdout)
        assert "pictures in all" in done.stdout or recipe.stage == "coldstart"
        assert "memory in all" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TRAINED)
def test_two_optimizer_steps_on_a_tiny_one(name, tmp_path, pipeline_folder):
    copies.prepare(tmp_path, pipeline_folder)
    built = recipes.build(shrunk(tree_of(name), tmp_path, pipeline_folder))
    run = copies.train(tmp_path / "run", built)
    rows = run.rows()
    assert rows[-1]["step"] == 2
    assert all(row["skipped"] == 0 and row["grad_norm"] >= 0 for row in rows)
    assert run.manifest().status == "done"
    assert run.adapter_dir.is_dir()


def shrunk(tree, folder, pipeline):
    """The recipe on a tiny base: its prompts, adapters and rewards exchanged for small ones, its method as it is."""
    steps = tree["train"].get("updates", 2) if tree["stage"] != "coldstart" else 1
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    tree["model"] |= {"pretrained": str(pipeline), "resolution": None, "max_sequence_length": 4, "device": "cpu"}
    for source in tree["prompts"]:
        source["task"] = source.get("task", source["source"])
        source["source"] = str(folder / "prompts.txt")
    if "init" in tree["adapter"]:
        tree["adapter"] |= {"init": str(folder / "start"), "rank": 4, "alpha": 8}
    for spec in [*tree.get("routing", {}).values(), *tree.get("teachers", {}).values()]:
        spec["ref"] = str(folder / "one")
    if "anchor" in tree:
        tree["anchor"]["ref"] = str(folder / "two")
    for reward in tree.get("rewards", []):
        reward |= {"name": "support.copies:Light", "options": {"upper": True}}
    tree["train"] |= {"iterations": 2 // steps, "groups": 2, "group_size": 4, "rollout_batch": 4, "sample_every": 0}
    if tree["stage"] == "coldstart":
        tree["sft"] |= {"samples": 4, "batch": 4}
    return tree
