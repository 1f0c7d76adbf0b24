"""The options that every stage takes, as one record, and the decorator that gives them to a command."""

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
    """What each stage's command line may say besides its own flags."""

    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="A shipped recipe or a YAML file.",
            autocompletion=completion.recipes,
        ),
    ] = None
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="'toy', a diffusers folder or a Hub id.")
    ] = None
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run directory to write; a fresh one if omitted.")
    ] = None
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override one field of the recipe; repeatable.")
    ] = field(default_factory=list)
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check what can be checked without weights, print the resolved recipe and its arithmetic, and stop.",
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
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is at --out.")] = False
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = None
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")] = False
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            min=1,
            help="Devices of this machine to work on at once; for several machines see `accelerate launch`.",
        ),
    ] = None


def stage_command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(common, *own flags)`` as a command whose options are its own and those of :class:`Common`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()][1:]
        shared = _parameters(Common)

        def command(**given: Any) -> None:
            common = Common(**{p.name: given.pop(p.name) for p in shared})
            function(common, **given)

        signature = inspect.Signature(_keyword_only([*own, *shared]))
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        app.command(function.__name__.rstrip("_"), help=inspect.getdoc(function))(command)
        return function

    return register


def _parameters(record: type) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[f.name], default=_default(f))
        for f in fields(record)
    ]


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _keyword_only(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
