"""Every shipped recipe parses, is complete, names things that exist, and has the arithmetic it promises."""

from pathlib import Path

import pytest
import yaml

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.check import tasks_of
from flowopd_cli.cli.plan.resolve import complete_names
from flowopd_cli.recipe.cost import arithmetic

SHELF = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(SHELF.rglob("*.yaml"))


def test_the_shelf_is_what_the_program_lists():
    assert {str(p.relative_to(SHELF).with_suffix("")) for p in FILES} == set(recipes.shipped())


@pytest.mark.parametrize("name", ["teacher-geneval", "teacher-ocr", "teacher-quality", "grpo-mix", "coldstart"])
def test_the_toy_shelf_has_what_the_commands_fall_back_on(name):
    assert f"toy/{name}" in recipes.shipped()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SHELF)))
def test_recipe(path):
    recipe = complete_names(recipes.load(path))
    assert recipes.build(yaml.safe_load(recipes.dump(recipe))) == recipe
    registry.MODELS.check(recipe.model.family)
    for spec in getattr(recipe, "rewards", ()):
        registry.REWARDS.target(spec.name)
    for suite in recipe.eval.suites if isinstance(recipe, recipes.EvalRecipe) else ():
        registry.SUITES.target(suite)
    assert arithmetic(recipe)["optimizer steps"] >= 0
    assert path.read_text(encoding="utf-8").startswith("#"), "a recipe opens with the commands that run it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SHELF)))
def test_toy_recipes_route_every_task(path):
    recipe = recipes.load(path)
    routes = getattr(recipe, "routing", None) or getattr(recipe, "teachers", None)
    if routes is None or recipe.model.pretrained != "toy":
        return
    assert set().union(*(tasks_of(spec) for spec in recipe.prompts)) <= set(routes)
