"""``flowopd doctor``: what this machine has and lacks."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.errors import FAULTY, RecipeError

if TYPE_CHECKING:
    from flowopd_cli.cli.doctor.checks import Line
    from flowopd_cli.recipe import Recipe

Wanted = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Can this machine run it?", autocompletion=completion.recipes),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="A.B=C", help="Override one field of the recipe; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def doctor(recipe: Wanted = None, overrides: Overrides = [], json: Json = False) -> None:  # noqa: B006
    """Look at this machine: Python, packages and the versions known to work, devices, memory, extras, the Hub's token,
    folders. With --recipe also whether it can run that, with which train.micro, and what is absent. Nothing is fetched.

    Each line says ok, warn or fail, and the way out. Exits with 3 if something that is needed fails.

    \b
    Example:
      flowopd doctor
      flowopd doctor --recipe sd35m/distill-1gpu --set train.micro=2
    """
    if overrides and recipe is None:
        raise RecipeError("--set changes a recipe: name one with --recipe")
    with redirect_stdout(sys.stderr):
        from flowopd_cli.cli.doctor import checks as general

        wanted = None if recipe is None else _load(recipe, overrides)
        lines = list(general.examine())
        if wanted is not None:
            lines += general.guarded("recipe", lambda: _of_recipe(wanted))
    failed = any(line.state == "fail" for line in lines)
    if json:
        print(jsonlib.dumps({"ok": not failed, "recipe": recipe, "lines": [line.tree() for line in lines]}))
    else:
        from flowopd_cli.system.text import columns

        told = [f"{line.found}: {line.way_out}" if line.way_out else line.found for line in lines]
        print(columns([(line.state, line.name, text) for line, text in zip(lines, told, strict=True)]))
    if failed:
        raise typer.Exit(FAULTY)


def _load(name: str, overrides: list[str]) -> Recipe | None:
    """The recipe; nothing where a package is absent without which none is read, which has a line of its own."""
    try:
        from flowopd_cli import recipe as recipes
    except ImportError:
        return None
    return recipes.load(recipes.find(name), overrides=overrides)


def _of_recipe(recipe: Recipe) -> Iterator[Line]:
    from flowopd_cli.cli.doctor import recipe as doctor_recipe

    yield from doctor_recipe.examine(recipe)
