"""``flowopd doctor``: whether this machine has what is needed. Nothing heavy is imported here."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json
from flowopd_cli.errors import FAULTY, ArtifactError, RecipeError

if TYPE_CHECKING:
    from flowopd_cli.cli.plan import Finding
    from flowopd_cli.recipe import Recipe

RECIPE, SET = "Also check whether this machine can run this recipe.", "Override one field of it; may be repeated."
Name = Annotated[str | None, typer.Option(metavar="NAME|FILE", help=RECIPE, autocompletion=completion.recipes)]
GPUCheck = Annotated[bool, typer.Option("--gpu-check", help="Measure parity, speed and memory on the GPU instead.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help=SET)]


def doctor(recipe: Name = None, overrides: Overrides = None, gpu_check: GPUCheck = False, json: Json = False) -> None:
    """Check this machine: Python, packages and their versions, devices, memory, extras, the Hub's token, folders. With
    --recipe, also check whether it can run that recipe, with which train.micro, and what is missing. With --gpu-check,
    measure a CUDA device on random weights of SD3.5-Medium instead, within six minutes. Downloads nothing.

    Each line says ok, warn or fail, and the remedy. Exits with 3 if a required check fails.

    \b
    Example:
      flowopd doctor
      flowopd doctor --recipe sd35m/distill-1gpu --set train.micro=2
      flowopd doctor --gpu-check
    """
    if overrides and recipe is None:
        raise RecipeError("--set changes a recipe: name one with --recipe")
    if gpu_check:
        if recipe is not None:
            raise RecipeError("--gpu-check measures a base of its own: leave out --recipe")
        _check_gpu(json)
        return
    with redirect_stdout(sys.stderr):
        from flowopd_cli.cli.doctor.checks import guarded, machine_findings

        loaded = None if recipe is None else _load(recipe, overrides or [])
        findings = list(machine_findings())
        if loaded is not None:
            findings += guarded("recipe", lambda: _recipe_findings(loaded))
    failed = any(finding.state == "fail" for finding in findings)
    if json:
        lines = [{"name": f.name, "state": f.state, "found": f.text, "way_out": f.way_out} for f in findings]
        print(jsonlib.dumps({"ok": not failed, "recipe": recipe, "lines": lines}))
    else:
        from flowopd_cli.system.text import columns

        print(columns([(finding.state, finding.name, str(finding)) for finding in findings]))
    if failed:
        raise typer.Exit(FAULTY)


def _check_gpu(json: bool) -> None:
    """Print the table of a GPU's checks; exit with 3 if one fails or misses its target."""
    from flowopd_cli.cli.console import Console
    from flowopd_cli.cli.doctor.machine import devices
    from flowopd_cli.system.text import columns

    if not devices():  # before the imports of the measurement, which take seconds
        raise ArtifactError("doctor --gpu-check needs a CUDA device, and PyTorch sees none: flowopd doctor says why")
    with redirect_stdout(sys.stderr):
        from flowopd_cli.stages.bench.gpu import Size, run

        rows = run(Size(), Console())
    ok = all(row.verdict in {"", "ok"} for row in rows)
    if json:
        print(jsonlib.dumps({"ok": ok, "rows": [vars(row) for row in rows]}))
    else:
        print(columns([(row.verdict or "-", row.check, row.figure, row.target) for row in rows]))
    if not ok:
        raise typer.Exit(FAULTY)


def _load(name: str, overrides: list[str]) -> Recipe | None:
    """The recipe; ``None`` if a package needed to read it is missing, which another check reports."""
    try:
        from flowopd_cli import recipe as recipes
    except ImportError:
        return None
    return recipes.load(recipes.find(name), overrides=overrides)


def _recipe_findings(recipe: Recipe) -> Iterator[Finding]:
    from flowopd_cli.cli.doctor.recipe import recipe_findings

    yield from recipe_findings(recipe)
