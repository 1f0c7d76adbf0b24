"""The life of one command: check the recipe, describe it or open a run, run the stage, close the run, say where."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer

from flowopd_cli import launch, preflight
from flowopd_cli import recipe as recipes
from flowopd_cli.arithmetic import arithmetic
from flowopd_cli.console import Console
from flowopd_cli.errors import ArtifactError, Interrupted, RecipeError
from flowopd_cli.options import Common
from flowopd_cli.plan import with_full_names
from flowopd_cli.progress import Progress
from flowopd_cli.run import RunDir, fresh_path

ONE_PROCESS = ("merge", "push")


def perform(recipe: recipes.Recipe, common: Common) -> None:
    """Do what a stage's command line asks for; stdout gets the run's path or JSON and nothing else."""
    notes = preflight.check(recipe)
    console = Console(quiet=common.quiet, main=launch.is_main())
    for note in notes:
        console.note(f"note: {note}")
    if common.dry_run and recipe.stage != "push":
        console.result(describe(recipe, notes, as_json=common.json))
        return
    if _is_finished(common):
        console.note(f"{common.resume} is already done; --set train.iterations=N goes further")
        _print_result(console, common, Path(str(common.resume)), {})
        return
    processes = _processes(recipe, common)
    if launch.should_launch(processes):
        raise typer.Exit(launch.relaunch(_argv(recipe.stage, common), processes, recipe.model.device))
    run = _open_run(recipe, common)
    with redirect_stdout(sys.stderr):
        result = run_stage(recipe, run, console, resume=common.resume is not None, dry_run=common.dry_run)
    _print_result(console, common, run.path, result)


def run_stage(
    recipe: recipes.Recipe, run: RunDir, progress: Progress, *, resume: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Run one stage in its directory; whatever happens, the manifest says how it ended.

    Raises:
        Interrupted: the user stopped it; the message says how to go on.
    """
    extra = {"dry_run": dry_run} if recipe.stage == "push" else {}
    recipe = with_full_names(recipe)
    run.start(recipe)
    try:
        stage = importlib.import_module(f"flowopd_cli.stages.{recipe.stage}")
        result = stage.run(recipe, run, progress, resume=resume, **extra)
    except (Interrupted, KeyboardInterrupt) as error:
        progress.done()
        _close(run, "interrupted")
        what = str(error) or "stopped"
        raise Interrupted(f"{what}; go on with: flowopd {recipe.stage} --resume {run.path}") from error
    except BaseException:
        progress.done()
        _close(run, "failed")
        raise
    progress.done()
    run.finish("done", result.get("metrics"))
    return result


def run_demo(
    out: Path | None, console: Console, *, seed: int, quick: bool, baseline: bool = False, ablation: bool = False
) -> dict[str, Any]:
    """The demonstration: a chain of shipped recipes, each in a run of its own under ``out``, and one report.

    Raises:
        ArtifactError: ``out`` has something in it.
    """
    path = out or fresh_path("demo")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ArtifactError(f"{path}: is not empty; give --out a fresh name, or leave it out")
    from flowopd_cli import demo

    with redirect_stdout(sys.stderr):
        result = demo.run(demo.Demo(path, run_stage, console, seed, quick), baseline=baseline, ablation=ablation)
        console.done()
    return result


def describe(recipe: recipes.Recipe, notes: list[str], *, as_json: bool) -> str:
    """The resolved recipe and its arithmetic, as YAML whose tail is a comment, or as JSON."""
    figures = arithmetic(recipe)
    if as_json:
        return json.dumps({"recipe": recipe.model_dump(mode="json"), "arithmetic": figures, "notes": notes})
    width = max(map(len, figures))
    lines = [f"#   {name:<{width}}  {_thousands(value)}" for name, value in figures.items()]
    return "\n".join([recipes.dump(recipe).rstrip(), "", "# batch arithmetic", *lines])


def _open_run(recipe: recipes.Recipe, common: Common) -> RunDir:
    if not launch.is_main():
        return RunDir(common.resume or Path(str(common.out)), writes=False)
    if common.resume is not None:
        return RunDir.open(common.resume)
    return RunDir.create(common.out, recipe.stage, force=common.force)


def _print_result(console: Console, common: Common, path: Path, result: dict[str, Any]) -> None:
    console.result(json.dumps({"run": str(path), **result}) if common.json else str(path))


def _is_finished(common: Common) -> bool:
    """Whether there is nothing left to resume."""
    return common.resume is not None and not common.overrides and RunDir.open(common.resume).manifest().status == "done"


def _processes(recipe: recipes.Recipe, common: Common) -> int:
    asked = common.processes or (recipe.train.processes if isinstance(recipe, recipes.TrainedRecipe) else 1)
    if asked > 1 and recipe.stage in ONE_PROCESS:
        raise RecipeError(f"{recipe.stage} works in one process: leave out --processes")
    return asked


def _argv(stage: str, common: Common) -> list[str]:
    """This command line again, with a run directory that every copy agrees on."""
    argv = sys.argv[1:]
    if common.out is None and common.resume is None:
        argv = [*argv, "--out", str(fresh_path(stage))]
    return argv


def _close(run: RunDir, status: Any) -> None:
    with suppress(OSError, ArtifactError):
        run.finish(status)


def _thousands(value: int | float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
