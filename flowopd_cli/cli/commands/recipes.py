"""``flowopd recipes``: list, print, copy and validate recipes. No torch here."""

from __future__ import annotations

import json as jsonlib
import re
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json
from flowopd_cli.errors import FAULTY, ArtifactError, printable

HELP = """List, copy and check recipes, both shipped and your own; list and copy studies.

\b
Example:
  flowopd recipes ls
  flowopd recipes copy toy/distill mine.yaml
  flowopd recipes validate mine.yaml
"""
app = typer.Typer(help=HELP, no_args_is_help=True)
NAME, FILES = "A name that 'recipes ls' prints, or a file.", "Files, or shipped names."
Name = Annotated[str, typer.Argument(help=NAME, autocompletion=completion.shipped)]
Files = Annotated[list[str], typer.Argument(metavar="FILE...", help=FILES, autocompletion=completion.recipes)]
Dest = Annotated[Path | None, typer.Argument(metavar="[DEST]", help="A file or folder; default: the same name.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@app.command()
def ls(json: Json = False) -> None:
    """List every shipped recipe: its stage, its base and its purpose; then every study, for 'flowopd study'.

    \b
    Example:
      flowopd recipes ls
      flowopd recipes ls --json
    """
    from flowopd_cli import recipe
    from flowopd_cli.system.text import columns

    files = [*sorted(recipe.shipped().items()), *sorted(recipe.shipped_studies().items())]
    rows = [_summary(name, path) for name, path in files]
    header = ("RECIPE", "STAGE", "BASE", "WHAT")
    print(jsonlib.dumps(rows) if json else columns([header, *(tuple(row.values()) for row in rows)]))


@app.command()
def show(name: Name) -> None:
    """Print a recipe or study as it was written, comments included.

    \b
    Example:
      flowopd recipes show toy/distill
    """
    from flowopd_cli import recipe

    path = recipe.find(name)
    recipe.read(path)
    print(path.read_text(encoding="utf-8"), end="")


@app.command()
def copy(name: Name, dest: Dest = None, force: Force = False) -> None:
    """Copy a recipe or study, comments included, to a file that you can edit. Prints the file's path.

    \b
    Example:
      flowopd recipes copy toy/distill
      flowopd recipes copy sd35m/teacher-ocr-1gpu mine.yaml
    """
    from flowopd_cli import recipe
    from flowopd_cli.system.files import atomic_write, is_dir

    source = recipe.find(name)
    stage = recipe.read(source).get("stage")
    use = f"{stage} --recipe" if stage else "study"
    target = dest / source.name if dest is not None and is_dir(dest) else dest or Path(source.name)
    if target.exists() and (not force or target.is_dir()):
        raise ArtifactError(f"{target}: exists already; give another name, or replace it with --force")
    atomic_write(target, source.read_bytes())
    print(target)
    typer.echo(f"run it with: flowopd {printable(use)} {target}", err=True)


@app.command()
def validate(files: Files, json: Json = False) -> None:
    """Check recipes, and print every error in each: keys, values, names, prompts, adapters. For a valid recipe, print
    its optimizer steps, pictures and memory. Exits with 3 if any recipe is invalid.

    \b
    Example:
      flowopd recipes validate mine.yaml toy/distill
      flowopd recipes validate mine.yaml --json
    """
    from flowopd_cli.cli.plan.validate import validate as validate_recipe

    validations = [validate_recipe(name) for name in files]
    if json:
        print(jsonlib.dumps([validation.tree() for validation in validations]))
    else:
        print("\n".join(printable(line) for validation in validations for line in validation.lines()))
    if any(validation.faults for validation in validations):
        raise typer.Exit(FAULTY)


def _summary(name: str, path: Path) -> dict[str, str]:
    from flowopd_cli import recipe

    tree = recipe.read(path)
    stages = tree.get("stages")
    first = recipe.read(recipe.find(next(iter(stages.values()))["recipe"])) if stages else tree
    base = (first.get("model") or {}).get("pretrained") or recipe.ModelSpec().pretrained
    lines = takewhile(lambda line: line.startswith("#") and line != "#", path.read_text(encoding="utf-8").splitlines())
    lead = " ".join(line.removeprefix("#").strip() for line in lines)
    sentence = re.split(r"\. |(?<=\?) ", lead, maxsplit=1)[0].rstrip(".")
    return {"recipe": name, "stage": "study" if stages else str(tree.get("stage")), "base": str(base), "what": sentence}
