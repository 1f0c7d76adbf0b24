"""The reference pages match the code, and names of code on other pages exist."""

import inspect
import pkgutil
import re
import subprocess
import sys

import pages
import pytest
import typer

from flowopd_cli import errors, recipe, registry
from flowopd_cli.cli.app import app

reference = pytest.importorskip("flowopd_reference")  # needs sphinx, as the site does
DOCS = pages.ROOT / "docs"


def models(model):
    """A model of a recipe and all below it."""
    yield model
    for _, _, below in reference.described(model):
        for _, inner in below:
            yield from models(inner)


ALL_MODELS = {inner for stage in recipe.STAGES.values() for inner in models(stage)} | {*models(recipe.StudySpec)}


def field_paths():
    """Every field of every recipe by its full name, sections too."""
    found = set()
    for stage in recipe.STAGES.values():
        for key, _, below in reference.described(stage):
            found.add(key)
            for path, model in below:
                found |= {path, *(f"{path}.{name}" for name in model.model_fields)}
    return found


def test_every_field_has_a_comment():
    silent = [
        f"{model.__name__}.{name}"
        for model in ALL_MODELS
        for name in model.model_fields
        if not reference.comments(model).get(name)
    ]
    assert silent == [], "write it behind the field, after #:"


def test_every_field_is_on_the_page():
    text = reference.fields()
    assert [path for path in field_paths() if f"`{path}`" not in text] == []
    assert "| `train.lr` | number > 0 | `0.0003` | learning rate |" in text
    assert "| `anchor.probability` | number > 0 ≤ 1 | `1` |" in text
    assert "| `sampling.kernel` | `flow_sde`, `cps`, `ode` | `flow_sde` |" in text
    assert "| `model.resolution` | integer > 0 or null | `512` |" in text


def test_every_field_of_a_study_is_on_the_page():
    text = reference.study()
    keys = [*recipe.StudySpec.model_fields, *(f"stages.NAME.{key}" for key in recipe.StageSpec.model_fields)]
    assert [key for key in keys if f"| `{key}` | " not in text] == []
    assert [name for name in recipe.shipped_studies() if f"`{name}`" not in text] == []


def test_every_command_and_flag_is_on_the_page():
    text = reference.commands()
    for name, command in reference.walk(typer.main.get_command(app), "flowopd"):
        part = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert part, name
        flags = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]
        assert [flag for flag in flags if f"`{flag}" not in part and flag != "--help"] == [], name


def test_every_name_and_shipped_recipe_is_on_the_page():
    text = reference.names()
    for kind in reference.TITLES:
        assert [name for name in registry.KINDS[kind].names() if f"| `{name}` | " not in text] == []
    assert "|  |" not in text, "something has no docstring"
    assert [name for name in recipe.shipped() if f"`{name}`" not in reference.recipes()] == []


def test_exit_codes_are_those_of_the_code():
    page = (DOCS / "reference/exit_codes.md").read_text(encoding="utf-8")
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", page, flags=re.M) for code in cell.split(",")}
    raised = {
        thing.exit_code
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.FlowOPDError)
    }
    signals = {128 + number for number in (1, 2, 13, 15)}
    assert listed == raised | signals | {0, 1, errors.FAULTY}


@pytest.mark.parametrize("page", ["paper_map.md", "method.md"])
def test_functions_and_tests_that_a_page_names_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:core|train)\.[\w.]+)`", text)) - field_paths()
    assert len(names) > 12
    for name in names:
        pkgutil.resolve_name(f"flowopd_cli.{name}")
    tests = re.findall(r"`(\w+/[\w/]*test_\w+\.py)`", text)
    assert [path for path in tests if not (pages.ROOT / "tests" / path).is_file()] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "train.keep_best.metric" in (tmp_path / "reference/recipes.html").read_text(encoding="utf-8")
