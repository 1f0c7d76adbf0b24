"""The options that all stages share, as one record, and the registration of a command with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from flowopd_cli.cli import completion

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)]

_RECIPE = "The recipe to start from: a name of 'recipes ls' or a YAML file."
_BASE = "The base model: 'toy', a diffusers folder or a Hub repository."
_DRY_RUN = "Check everything that needs no weights, print the resolved recipe and its cost, and stop."
_RESUME = "Continue an interrupted run with its own recipe."
_CODE = "Import and run code that the recipe file names as module:attr."
_PROCESSES = "How many devices of this machine to use; for several machines see `accelerate launch`."


@dataclass(frozen=True)
class Common:
    """The options that all stages share."""

    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help=_RECIPE, autocompletion=completion.recipes)
    ] = None
    base: Annotated[str | None, typer.Option(metavar="BASE", help=_BASE)] = None
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run directory to write; a fresh one by default.")
    ] = None
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override one field of the recipe; may be repeated.")
    ] = field(default_factory=list)
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help=_RESUME, autocompletion=completion.runs)] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run at --out.")] = False
    allow_code: Annotated[bool, typer.Option("--allow-code", help=_CODE)] = False
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed of all random numbers.")] = None
    json: Json = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")] = False
    processes: Annotated[int | None, typer.Option(metavar="N", min=1, help=_PROCESSES)] = None


def stage_command(app: typer.Typer, function: Callable[..., None], *, panel: str) -> None:
    """Register ``function(common, *own flags)`` as a command whose options are its own and those of :class:`Common`."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [p.replace(kind=keyword, annotation=hints[p.name]) for p in own]
    hints = get_type_hints(Common, include_extras=True)
    for item in fields(Common):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        parameters.append(inspect.Parameter(item.name, keyword, annotation=hints[item.name], default=default))

    def command(**values: object) -> None:
        common = {item.name: values.pop(item.name) for item in fields(Common)}
        function(Common(**common), **values)  # pyright: ignore[reportArgumentType]

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(function.__name__.rstrip("_"), help=inspect.getdoc(function), rich_help_panel=panel)(command)
