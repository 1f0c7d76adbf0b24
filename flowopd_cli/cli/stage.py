"""One stage in its run directory, from the first write of the manifest to the final status."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from flowopd_cli.cli import signals
from flowopd_cli.cli.plan.consent import code_fields
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import ArtifactError, DivergedError, Interrupted, RewardError, StorageError
from flowopd_cli.recipe import PushRecipe, Recipe
from flowopd_cli.reports import report
from flowopd_cli.reports.track import tracked
from flowopd_cli.runs.layout import resume_command
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.progress import Progress


def run_stage(plan: Plan, run: RunDir, progress: Progress, *, resume: bool = False) -> dict[str, Any]:
    """Run one stage in its directory and record in the manifest how it ended.

    Raises :class:`Interrupted`: the user stopped it; the message has the resume command.
    """
    recipe = plan.recipe
    again = continuation(recipe, run.path)
    with signals.terminable() as first, GROUP.together():
        run.start(recipe)
        try:
            progress = tracked(recipe, run, progress)
            options = {} if plan.shared is None else {"shared": plan.shared}
            result = _load(recipe.stage)(recipe, run, progress, adapters=plan.adapters, resume=resume, **options)
        except (Interrupted, KeyboardInterrupt) as error:
            progress.done()
            _close(run, "interrupted", progress if isinstance(error, Interrupted) else None)
            raise interruption(error, first(), again) from error
        except BaseException as error:
            progress.done()
            _close(run, "failed", progress if isinstance(error, DivergedError) else None)
            if isinstance(error, StorageError | RewardError) and run.checkpoints.steps():
                error.args = (f"{error}; its checkpoints are safe; fix this, then resume with: {again}",)
            raise
        progress.done()
        metrics = result.get("metrics")
        try:
            report.at_end(run, progress, "done", metrics)
        finally:  # even if the report is interrupted
            run.finish("done", metrics)
    return result


def continuation(recipe: Recipe, path: Path) -> str:
    """The command line that resumes a run."""
    consent = " --allow-code" if any(code_fields(recipe)) else ""
    return resume_command(recipe.stage, path) + consent + (" --dry-run" if is_dry_push(recipe) else "")


def is_dry_push(recipe: Recipe) -> bool:
    """Whether it is a push that uploads nothing; resuming it keeps it so."""
    return isinstance(recipe, PushRecipe) and recipe.push.dry_run


def interruption(error: BaseException, number: int | None, again: str) -> Interrupted:
    """The error of an interrupted command; ``number`` is the signal that this process received, if any."""
    if number is None:
        number = error.exit_code - 128 if isinstance(error, Interrupted) else signal.SIGINT
    return Interrupted(f"{str(error) or 'stopped'}; resume with: {again}", number)


def _load(stage: str) -> Callable[..., dict[str, Any]]:
    """Import a stage with the garbage collector off: collection takes a fifth of the time and frees nothing."""
    first = "torch" not in sys.modules
    gc.disable()
    try:
        match stage:  # import the stage alone: a merge needs neither diffusers nor transformers
            case "teacher":
                from flowopd_cli.stages.teacher import run
            case "coldstart":
                from flowopd_cli.stages.coldstart import run
            case "merge":
                from flowopd_cli.stages.merge import run
            case "distill":
                from flowopd_cli.stages.distill import run
            case "eval":
                from flowopd_cli.stages.eval import run
            case _:
                from flowopd_cli.stages.push import run
        return run
    finally:
        if first:
            gc.freeze()
        gc.enable()


def _close(run: RunDir, status: Literal["interrupted", "failed"], progress: Progress | None) -> None:
    """Close a run that did not finish, with a report if ``progress`` is given."""
    if progress is not None:
        with suppress(KeyboardInterrupt):  # a second signal leaves no time for the report
            report.at_end(run, progress, status)
    with suppress(OSError, ArtifactError):
        run.finish(status)
