"""What is made from the code is whole; what is written by hand about the code is true."""

import importlib
import inspect
import re
import socket
import subprocess
import sys
import typing
from pathlib import Path

import pages
import pytest
import typer

from flowopd_cli import errors, recipe, registry
from flowopd_cli.cli.app import app
from flowopd_cli.recipe import sections

reference = pytest.importorskip("flowopd_reference")  # needs sphinx, as the site does
DOCS = pages.ROOT / "docs"


def models(model):
    """A model of a recipe and all below it."""
    yield model
    for _, _, below in reference.described(model):
        for _, inner in below:
            yield from models(inner)


ALL_MODELS = {inner for stage in recipe.STAGES.values() for inner in models(stage)}


def field_paths():
    """Every field of every recipe by its full name, sections too."""
    found = set()
    for stage in recipe.STAGES.values():
        for key, _, below in reference.described(stage):
            found.add(key)
            for path, model in below:
                found |= {path, *(f"{path}.{name}" for name in model.model_fields)}
    return found


def test_every_section_is_reached():
    section_types = {
        thing
        for _, thing in inspect.getmembers(sections, inspect.isclass)
        if issubclass(thing, sections.Spec) and thing is not sections.Spec
    }
    assert section_types <= ALL_MODELS


@pytest.mark.parametrize(
    "model", sorted(ALL_MODELS, key=lambda model: model.__name__), ids=lambda model: model.__name__
)
def test_every_field_says_what_it_means(model):
    silent = [name for name in model.model_fields if not reference.comments(model).get(name)]
    assert silent == [], "write it behind the field, after #:"


def test_every_field_is_on_the_page():
    text = reference.fields()
    assert [path for path in field_paths() if f"`{path}`" not in text] == []
    assert "| `train.lr` | number > 0 | `0.0003` | learning rate |" in text
    assert "| `anchor.probability` | number > 0 ≤ 1 | `1` |" in text
    assert "| `sampling.kernel` | `flow_sde`, `cps`, `ode` | `flow_sde` |" in text
    assert "| `model.resolution` | integer > 0 or null | `512` |" in text


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


def examples():
    """The command lines in the help of every command."""
    root = typer.main.get_command(app)
    return [
        found for _, command in reference.walk(root, "flowopd") for found in pages.commands(reference.examples(command))
    ]


@pytest.mark.parametrize("example", examples(), ids=lambda example: " ".join(example.words))
def test_examples_of_help_parse(example):
    command, words = typer.main.get_command(app), list(example.words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context("flowopd", words)


def test_exit_codes_are_those_of_the_code():
    page = (DOCS / "reference/exit_codes.md").read_text(encoding="utf-8")
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", page, flags=re.M) for code in cell.split(",")}
    raised = {
        thing.exit_code
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.FlowOPDError)
    }
    signals = {128 + number for number in (1, 2, 15)}
    assert listed == raised | signals | {0, 1, errors.FAULTY}


def paper_rows():
    """Function, test and field of each row of the paper map's tables of formulas."""
    page = (DOCS / "paper_map.md").read_text(encoding="utf-8").partition("## Where paper")[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[1] != "function"]


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row[0][:50])
def test_a_row_of_the_paper_map_leads_somewhere(row):
    _, functions, tests, fields = row
    module = None
    for name in re.findall(r"`([\w.]+)`", functions):
        module = resolved(name, module)
    found = re.findall(r"`([\w/]+\.py)`", tests)
    assert found
    assert [path for path in found if not (pages.ROOT / "tests" / path).is_file()] == []
    known = field_paths()
    for name in re.findall(r"`([\w.*\[\]]+)(?:: \w+)?`", fields):
        pattern = re.escape(name).replace(r"\*", r"[\w]+").replace(r"options\.score", "options")
        assert any(re.fullmatch(pattern, path) for path in known), name


def resolved(name, module):
    """Import what a dotted name below the package means; a bare one is of the module before it, or a merge method."""
    if "." not in name:
        assert hasattr(module, name) or name in typing.get_args(sections.MergeSpec.model_fields["method"].annotation)
        return module
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = found = importlib.import_module(f"flowopd_cli.{'.'.join(parts[:cut])}")
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return module
    raise AssertionError(name)


def test_functions_that_the_method_names_exist():
    named = re.findall(r"`((?:core|train)\.[\w.]+)`", (DOCS / "method.md").read_text(encoding="utf-8"))
    assert len(named) > 12
    for name in named:
        resolved(name, None)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    build("html", tmp_path)
    assert "train.keep_best.metric" in (tmp_path / "reference/recipes.html").read_text(encoding="utf-8")


@pytest.mark.hub
@pytest.mark.slow
def test_links_to_other_sites_lead_somewhere(tmp_path):
    try:
        socket.create_connection(("arxiv.org", 443), timeout=10).close()
    except OSError as error:
        pytest.skip(str(error))
    build("linkcheck", tmp_path)


def build(kind, out: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", kind, DOCS, out]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
