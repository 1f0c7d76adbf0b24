"""Every shipped recipe parses, is complete, names only what exists, and routes every task."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.doctor.recipe import peak
from flowopd_cli.cli.plan.check import tasks_of
from flowopd_cli.cli.plan.resolve import complete_names
from flowopd_cli.cli.study.grid import check_nodes, expand
from flowopd_cli.recipe.cost import arithmetic

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.yaml"))}
STATED = re.findall(r"^\| \[([\w/-]+)\].* (\d+) GiB", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
STUDIES = {name: FILES.pop(name) for name in [*FILES] if name.startswith("studies/")}
TEACHERS = [f"teacher-{objective}" for objective in ("geneval", "ocr", "preference", "quality")]
DEFAULTS = {f"toy/{name}" for name in ("teacher-geneval", "teacher-ocr", "teacher-quality", "grpo-mix", "coldstart")}


def test_the_program_lists_every_file_and_has_its_defaults():
    assert DEFAULTS < set(FILES) == set(recipes.shipped())
    assert set(STUDIES) == set(recipes.shipped_studies())


@pytest.mark.parametrize("name", STUDIES)
def test_study(name):
    grid = grid_of(name)
    assert check_nodes(grid, name, allow_code=False) == []
    assert {cell.seed for cell in grid.cells} == {0, 1, 2}
    specs = [node.recipe for node in grid.nodes.values()]
    evaluations = {(spec.eval.split, spec.eval.guidance) for spec in specs if isinstance(spec, recipes.EvalRecipe)}
    assert evaluations == {("test", 1.0)}
    trained = [spec for spec in specs if isinstance(spec, recipes.TrainedRecipe)]
    assert {spec.sampling.guidance for spec in trained} == {1.0}
    assert {prompts.split for spec in trained for prompts in spec.prompts} == {"train"}
    folder = f"--out {name} --store studies/runs"
    header = STUDIES[name].read_text(encoding="utf-8").partition("\nseeds:")[0]
    assert f"#   run:       flowopd study {name.removeprefix('studies/')} {folder}\n" in header
    assert all(line.startswith("#") for line in header.splitlines()), "a study opens with its question and its command"


def test_studies_share_their_teachers():
    """One ``--store`` trains each teacher of a seed once for all studies."""
    names = {}
    for node in (node for name in STUDIES for node in grid_of(name).nodes.values()):
        if node.stage in TEACHERS:
            names.setdefault(node.label, []).append(node.name)
    assert set(names) == {f"{stage}: seed {seed}" for stage in TEACHERS for seed in (0, 1, 2)}
    assert {label: len(set(runs)) for label, runs in names.items()} == dict.fromkeys(names, 1)
    assert all(len(runs) >= len(STUDIES) for runs in names.values())


@cache
def grid_of(name):
    return expand(recipes.load_study(STUDIES[name]), name)


@pytest.mark.parametrize("name", FILES)
def test_recipe(name):
    recipe = complete_names(recipes.load(FILES[name]))
    assert recipes.build(yaml.safe_load(recipes.dump(recipe))) == recipe
    registry.MODELS.check(recipe.model.family)
    for spec in getattr(recipe, "rewards", ()):
        registry.REWARDS.target(spec.name)
    for suite in recipe.eval.suites if isinstance(recipe, recipes.EvalRecipe) else ():
        registry.SUITES.target(suite)
    assert arithmetic(recipe)["optimizer steps"] >= 0
    assert FILES[name].read_text(encoding="utf-8").startswith("#"), "a recipe opens with the commands that run it"
    routes = getattr(recipe, "routing", None) or getattr(recipe, "teachers", None)
    if routes and recipe.model.pretrained == "toy":
        assert set().union(*(tasks_of(spec) for spec in recipe.prompts)) <= set(routes)


@pytest.mark.parametrize(("name", "gib"), STATED)
def test_the_stated_memory_is_the_estimate(name, gib):
    recipe = complete_names(recipes.load(FILES[name]))
    assert isinstance(recipe, recipes.TrainedRecipe)
    needed = peak(recipe, recipe.train.micro, checkpointing=recipe.train.gradient_checkpointing)
    assert f"{needed / 2**30:.0f}" == gib
