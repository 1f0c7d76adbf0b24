"""The options that every stage takes, as one record, and the registration of a command with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flowopd_cli.cli import completion


@dataclass(frozen=True)
class Common:
    """The options that every stage takes besides its own."""

    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="The recipe to start from: a name of 'recipes ls' or a YAML file.",
            autocompletion=completion.recipes,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The base model: 'toy', a diffusers folder or a Hub repository."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run directory to write; a fresh one by default."),
    ] = None
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="A.B=C", help="Override one field of the recipe; may be repeated."),
    ] = field(default_factory=list)
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything that needs no weights, print the resolved recipe and its arithmetic, and stop.",
        ),
    ] = False
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with an interrupted run, by its own recipe.",
            autocompletion=completion.runs,
        ),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace the run that exists at --out.")] = False
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Import and run code that the recipe file names as module:attr."),
    ] = False
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The seed of everything random.")] = None
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors to stderr.")] = False
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="How many devices of this machine to use; for several machines see `accelerate launch`.",
        ),
    ] = None


def stage_command(app: typer.Typer, function: Callable[..., None], *, panel: str) -> None:
    """Register ``function(common, *own flags)`` as a command whose options are its own and those of :class:`Common`."""
    hints = get_type_hints(function, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()][1:]
    shared = _parameters(Common)

    def command(**values: Any) -> None:
        common = Common(**{p.name: values.pop(p.name) for p in shared})
        function(common, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *shared]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    name, help = function.__name__.rstrip("_"), inspect.getdoc(function)
    app.command(name, help=help, rich_help_panel=panel)(command)


def _parameters(record: type) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name], default=_default(f))
        for f in fields(record)
    ]


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
