"""The life of one command: check the recipe, describe it or open a run, run the stage, close the run, say where."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from flowopd_cli import recipe as recipes
from flowopd_cli.cli import launch, signals
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.demo import Demo
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan import check as preflight
from flowopd_cli.cli.plan.settle import remarks, settle
from flowopd_cli.errors import ArtifactError, DivergedError, Interrupted, RecipeError, RewardError, StorageError
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.reports import report
from flowopd_cli.reports.track import tracked
from flowopd_cli.runs.evaluations import results
from flowopd_cli.runs.layout import fresh_path, go_on
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system import distributed as processes
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.text import suggest

UNDER_THE_BAR = 3
ONE_PROCESS = ("merge", "push")


def perform(recipe: recipes.Recipe, common: Common) -> None:
    """Do what a stage's command line asks for; stdout gets the run's path or JSON and nothing else."""
    asked, recipe = recipe, settle(recipe)
    notes = remarks(asked, recipe, common.overrides)
    notes += preflight.check(recipe, out=common.out, dry_run=common.dry_run or _is_dry(recipe))
    console = Console(quiet=common.quiet, main=launch.is_main())
    for note in notes:
        console.note(f"note: {note}")
    if common.dry_run and recipe.stage != "push":
        console.result(describe(recipe, notes, as_json=common.json))
        return
    if _is_finished(common):
        console.note(f"{common.resume} is already done{_further(recipe)}")
        _tell(console, common, recipe, Path(str(common.resume)), _known_result(recipe, Path(str(common.resume))))
        return
    copies = _processes(recipe, common)
    if launch.should_launch(copies):
        _check_stage(recipe)
        raise typer.Exit(_relaunch(recipe, common, copies))
    with processes.together():  # what the first refuses, the others would wait for
        _check_stage(recipe)
        run = _open_run(recipe, common)
    with redirect_stdout(sys.stderr):
        result = run_stage(recipe, run, console, resume=common.resume is not None)
    _tell(console, common, recipe, run.path, result)


def run_stage(
    recipe: recipes.Recipe,
    run: RunDir,
    progress: Progress,
    *,
    resume: bool = False,
    dry_run: bool = False,
    again: str | None = None,
) -> dict[str, Any]:
    """Run one stage in its directory; whatever happens, the manifest says how it ended.

    ``again`` is the command that goes on after an interruption, where that is not the stage's own.

    Raises:
        Interrupted: the user stopped it; the message says how to go on.
    """
    dry_run = dry_run or _is_dry(recipe)
    extra = {"dry_run": dry_run} if recipe.stage == "push" else {}
    recipe = settle(recipe)
    again = again or go_on(recipe.stage, run.path) + (" --dry-run" if dry_run else "")
    with signals.terminable() as first, processes.together():
        run.start(recipe)
        try:
            progress = tracked(recipe, run, progress)
            stage = _import_stage(recipe.stage)
            result = stage.run(recipe, run, progress, resume=resume, **extra)
        except (Interrupted, KeyboardInterrupt) as error:
            progress.done()
            _close(run, "interrupted", progress if isinstance(error, Interrupted) else None)
            raise _stopped(error, first(), again) from error
        except BaseException as error:
            progress.done()
            _close(run, "failed", progress if isinstance(error, DivergedError) else None)
            if isinstance(error, StorageError | RewardError) and run.checkpoints.steps():
                error.args = (f"{error}; its checkpoints are safe, then go on with: {again}",)
            raise
        progress.done()
        _conclude(run, progress, result.get("metrics"))
    return result


def _conclude(run: RunDir, progress: Progress, metrics: Mapping[str, Any] | None) -> None:
    """Write the report of a run that is done and close it: whoever stops the report stops nothing else."""
    try:
        report.at_end(run, progress, "done", metrics)
    finally:
        run.finish("done", metrics)


def _stopped(error: BaseException, number: int | None, again: str) -> Interrupted:
    """How a stage that was asked to stop says so; ``number`` is the signal that asked this process, if one did."""
    told = Interrupted(f"{str(error) or 'stopped'}; go on with: {again}")
    known = error.exit_code if isinstance(error, Interrupted) else told.exit_code
    told.exit_code = known if number is None else 128 + number
    return told


def _import_stage(name: str) -> ModuleType:
    """Import a stage without a search for garbage: what is imported stays, and the search takes a fifth of the time."""
    first = "torch" not in sys.modules
    gc.disable()
    try:
        return importlib.import_module(f"flowopd_cli.stages.{name}")
    finally:
        if first:
            gc.freeze()
        gc.enable()


def run_demo(demo: Demo, console: Console) -> dict[str, Any]:
    """The demonstration: a chain of shipped recipes, each in a run of its own under ``demo.out``, and one report.

    Raises:
        ArtifactError: ``demo.out`` has something else in it.
        MissingDependency: a stage would miss a package.
        Interrupted: the user stopped it; the message says how to go on.
    """
    again = demo.command()
    with redirect_stdout(sys.stderr), signals.terminable() as first:
        try:
            result = demo.run(partial(run_stage, again=again), console)
        except KeyboardInterrupt as error:
            raise _stopped(error, first(), again) from error
        finally:
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


def _check_stage(recipe: recipes.Recipe) -> None:
    """What an evaluation can refuse only with its suites at hand, before a run directory is made."""
    if isinstance(recipe, recipes.EvalRecipe) and launch.is_main():
        with redirect_stdout(sys.stderr):
            importlib.import_module("flowopd_cli.stages.evaluation.suites").check(recipe)


def _known_result(recipe: recipes.Recipe, path: Path) -> dict[str, Any]:
    """What a finished run said at its end, as far as it is asked for again."""
    run = RunDir.open(path, writes=False)
    return {"suites": results(run)} if isinstance(recipe, recipes.EvalRecipe) else {}


def _tell(console: Console, common: Common, recipe: recipes.Recipe, path: Path, result: dict[str, Any]) -> None:
    """The run's path or JSON; an evaluation with a suite under its bar says so and exits with 3."""
    bars = recipe.eval.fail_under if isinstance(recipe, recipes.EvalRecipe) and launch.is_main() else {}
    for name in bars:
        if name not in result["suites"]:
            raise RecipeError(f"--fail-under {name}: no such result{suggest(name, list(result['suites']))}")
    means = {name: result["suites"][name]["mean"] for name in bars}
    below = [f"{name}: {means[name]:.4f} is under {bar}" for name, bar in bars.items() if not means[name] >= bar]
    told = {"run": str(path), **result} | ({"below": below} if bars else {})
    console.result(json.dumps(told) if common.json else str(path))
    for line in below:
        typer.echo(line, err=True)
    if below:
        raise typer.Exit(UNDER_THE_BAR)


def _is_finished(common: Common) -> bool:
    """Whether there is nothing left to resume."""
    return common.resume is not None and not common.overrides and RunDir.open(common.resume).manifest().status == "done"


def _is_dry(recipe: recipes.Recipe) -> bool:
    """Whether it is a push that uploads nothing; one that was interrupted goes on as one."""
    return isinstance(recipe, recipes.PushRecipe) and recipe.push.dry_run


def _further(recipe: recipes.Recipe) -> str:
    """What could still be made of a finished run."""
    if isinstance(recipe, recipes.TrainedRecipe):
        return "; --set train.iterations=N goes further"
    return "; nothing was uploaded: push again without --dry-run, with another --out" if _is_dry(recipe) else ""


def _processes(recipe: recipes.Recipe, common: Common) -> int:
    asked = common.processes or (recipe.train.processes if isinstance(recipe, recipes.TrainedRecipe) else 1)
    if asked > 1 and recipe.stage in ONE_PROCESS:
        raise RecipeError(f"{recipe.stage} works in one process: leave out --processes")
    return asked


def _relaunch(recipe: recipes.Recipe, common: Common, copies: int) -> int:
    """This command line again, in several copies, with a run directory that all agree on."""
    argv, path = sys.argv[1:], common.resume or common.out or fresh_path(recipe.stage)
    if common.out is None and common.resume is None:
        argv = [*argv, "--out", str(path)]
    try:
        return launch.relaunch(argv, copies, recipe.model.device)
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {go_on(recipe.stage, path)}", error.exit_code - 128) from error


def _close(run: RunDir, status: Any, progress: Progress | None = None) -> None:
    """Close a run that came to nothing, with a report where ``progress`` says that there is time for one."""
    if progress is not None:
        with suppress(KeyboardInterrupt):  # a second signal: there is no time for it after all
            report.at_end(run, progress, status)
    with suppress(OSError, ArtifactError):
        run.finish(status)


def _thousands(value: int | float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
