"""The recipes for Stable Diffusion 3.5: each states its cost, and takes two optimizer steps on a tiny base."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from support import copies
from support.tiny import LARGER, TEXTS, assemble
from typer.testing import CliRunner

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.app import app
from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import kl, make_kernel

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


@pytest.mark.parametrize("name", [name for name in NAMES if tree_of(name).get("grpo", {}).get("beta")])
def test_the_kl_to_the_base_weighs_as_published_in_sum_over_the_trained_steps(name):
    """The released code leaves dt out of the KL; shares of steps differ, the sums at equal velocity errors agree."""
    recipe = recipes.load(recipes.find(name))
    sigmas, last = flow_sigmas(recipe.sampling.steps, 3.0), recipe.sampling.steps - 1
    kernel, sigma, sigma_next = make_kernel("flow_sde", recipe.sampling.eta, sigmas), sigmas[:last], sigmas[1:-1]
    rest = sigma.new_zeros(last, 1, 1, 1)
    here = kl(kernel(rest, rest, sigma, sigma_next), kernel(rest + 1, rest, sigma, sigma_next))
    there = here * (sigma - sigma_next)
    assert recipe.sampling.window is None
    published = 0.01 if "teacher-pickscore" in name else 0.04
    assert recipe.grpo.beta * float(here.sum()) == pytest.approx(published * float(there.sum()), rel=0.01)
    assert float(here.sum() / there.sum()) == pytest.approx(4.39, abs=0.005)


@pytest.mark.parametrize("name", [name for name in NAMES if "teacher-fast" in name])
def test_the_fast_teachers_learn_three_of_the_first_five_steps(name):
    recipe = recipes.load(recipes.find(name))
    window = recipe.sampling.window
    assert {start + i for start in range(window.start_min, window.start_max + 1) for i in range(window.size)} == {
        *range(5)
    }
    assert (window.size, recipe.grpo.ratio, recipe.grpo.clip) == (3, "unscaled", 1e-5)


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
        if "base" in spec:
            spec |= {"ref": "base", "base": str(larger(folder / "larger", pipeline))}
    if "ref" in tree.get("anchor", {}):
        tree["anchor"]["ref"] = str(folder / "two")
    for reward in tree.get("rewards", []):
        reward |= {"name": "support.copies:Light", "options": {"upper": True}}
    tree["train"] |= {"iterations": 2 // steps, "groups": 2, "group_size": 4, "rollout_batch": 4, "sample_every": 0}
    if tree["stage"] == "coldstart":
        tree["sft"] |= {"samples": 4, "batch": 4}
    return tree


def larger(folder, pipeline):
    """The tiny base with a larger transformer."""
    if not folder.exists():
        shutil.copytree(pipeline, folder)
        assemble(1, **LARGER).transformer.save_pretrained(folder / "transformer")
    return folder
