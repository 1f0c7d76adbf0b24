"""``flowopd doctor``: what this machine has and lacks."""

from __future__ import annotations

import json as jsonlib
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from flowopd_cli import completion
from flowopd_cli.errors import RecipeError

FAULTY = 3
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Can this machine run it?", autocompletion=completion.recipes),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="A.B=C", help="Override one field of the recipe; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def doctor(recipe: Recipe = None, overrides: Overrides = [], json: Json = False) -> None:  # noqa: B006
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
        from flowopd_cli import doctor as general
        from flowopd_cli import recipe as recipes

        wanted = None if recipe is None else recipes.load(recipes.find(recipe), overrides=overrides)
        lines = list(general.examine())
        if wanted is not None:
            from flowopd_cli import doctor_recipe

            lines += doctor_recipe.examine(wanted)
    failed = any(line.state == "fail" for line in lines)
    if json:
        print(jsonlib.dumps({"ok": not failed, "recipe": recipe, "lines": [line.tree() for line in lines]}))
    else:
        from flowopd_cli.tables import columns

        told = [f"{line.found}: {line.way_out}" if line.way_out else line.found for line in lines]
        print(columns([(line.state, line.name, text) for line, text in zip(lines, told, strict=True)]))
    if failed:
        raise typer.Exit(FAULTY)
