"""The life of one command: check the plan, describe it or open a run, run the stage, print the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from flowopd_cli.cli import launch
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.doctor.recipe import refuse_too_large
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan import memory
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import continuation, is_dry_push, run_stage
from flowopd_cli.errors import FAULTY, Interrupted, RecipeError
from flowopd_cli.recipe import EvalRecipe, Recipe, TrainedRecipe, dump
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.runs import evaluations
from flowopd_cli.runs.layout import fresh_path
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.json_files import plain
from flowopd_cli.system.text import suggest

FIGURE_WIDTH = 45
ONE_PROCESS = ("merge", "push")


def execute(plan: Plan, common: Common) -> None:
    """Run a stage, or with ``--dry-run`` describe it; stdout gets the run's path or JSON and nothing else."""
    recipe = plan.recipe
    dry_run = common.dry_run or is_dry_push(recipe)
    recorded = None if common.resume is None else RunDir.open(common.resume, writes=False).recipe()
    remarks = check(
        recipe, adapters=plan.adapters, out=common.out, dry_run=dry_run, recorded=recorded, start=plan.start
    )
    remarks = [*launch.REMARKS, *plan.remarks, *remarks]
    console = Console(quiet=common.quiet, main=launch.is_main())
    for remark in remarks:
        console.note(f"note: {remark}")
    if common.dry_run and recipe.stage != "push":
        print_dry_run(console, recipe, remarks, as_json=common.json)
        return
    if common.resume is not None and not common.overrides and RunDir.open(common.resume).manifest().status == "done":
        console.note(f"{common.resume} is already done{_next_step(recipe, RunDir.open(common.resume))}")
        result: dict[str, Any] = {}
        if isinstance(recipe, EvalRecipe):
            scores = evaluations.by_guidance(RunDir.open(common.resume, writes=False))
            result = evaluations.outcome(recipe.eval, {one.part: one.results for one in scores})
        _print_result(console, common, recipe, common.resume, result)
        return
    processes = number_of_processes(recipe, common)
    if isinstance(recipe, TrainedRecipe) and recipe.adapter.kind == "full" and GROUP.size == 1:
        refuse_too_large(recipe)
    if processes > 1 and launch.may_launch():
        _with_requests(plan)
        raise typer.Exit(relaunch(recipe, common, processes))
    if GROUP.size > 1:
        GROUP.start()
    with GROUP.together():  # an error of the first process ends the others, which would wait for it
        plan = _with_requests(plan)
        run = _open_run(recipe, common)
    with redirect_stdout(sys.stderr):
        result = run_stage(plan, run, console, resume=common.resume is not None)
    _print_result(console, common, recipe, run.path, result)


def print_dry_run(console: Console, recipe: Recipe, remarks: list[str], *, as_json: bool) -> None:
    """Print the resolved recipe, its cost and its memory, as YAML with a trailing comment or as JSON."""
    figures = arithmetic(recipe)
    if as_json:
        figures |= memory.figures(recipe)
        console.result(json.dumps({"recipe": recipe.model_dump(mode="json"), "arithmetic": figures, "notes": remarks}))
        return
    console.result("\n".join([dump(recipe).rstrip(), "", "# batch arithmetic", *_comments(figures)]))
    for line in _comments(memory.figures(recipe)):  # this takes seconds
        console.result(line)


def _comments(figures: Mapping[str, int | float | str]) -> list[str]:
    texts = {name: f"{value:,}" if isinstance(value, int) else value for name, value in figures.items()}
    return [f"#   {name:<{FIGURE_WIDTH}}  {text}" for name, text in texts.items()]


def _open_run(recipe: Recipe, common: Common) -> RunDir:
    if not launch.is_main():
        return RunDir(common.resume or Path(str(common.out)), writes=False)
    if common.resume is not None:
        return RunDir.open(common.resume)
    return RunDir.create(common.out, recipe.stage, force=common.force)


def _with_requests(plan: Plan) -> Plan:
    """Plan the pictures of an evaluation before its run directory exists: wrong suites or prompts fail early."""
    if not isinstance(plan.recipe, EvalRecipe) or not launch.is_main():
        return plan
    with redirect_stdout(sys.stderr):
        from flowopd_cli.stages.evaluation.shared import Shared
        from flowopd_cli.stages.evaluation.suites import plan_requests

        return replace(plan, shared=Shared(plan_requests(plan.recipe)))


def _print_result(console: Console, common: Common, recipe: Recipe, path: Path, result: dict[str, Any]) -> None:
    """The run's path or JSON; an evaluation with a suite below its threshold exits with 3."""
    thresholds = isinstance(recipe, EvalRecipe) and recipe.eval.fail_under and launch.is_main()
    below = failing(recipe, result["suites"]) if isinstance(recipe, EvalRecipe) and thresholds else []
    tree = {"run": str(path), **result} | ({"below": below} if thresholds else {})
    console.result(json.dumps(plain(tree)) if common.json else str(path))
    for line in below:
        typer.echo(line, err=True)
    if below:
        raise typer.Exit(FAULTY)


def failing(recipe: EvalRecipe, suites: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each suite whose mean is under its threshold.

    Raises :class:`RecipeError`: a threshold is of a suite without a result.
    """
    lines = []
    for name, threshold in recipe.eval.fail_under.items():
        if name not in suites:
            raise RecipeError(f"--fail-under {name}: no such result{suggest(name, list(suites))}")
        mean = suites[name]["mean"]
        lines += [] if mean >= threshold else [f"{name}: {mean:.4f} is under {threshold}"]
    return lines


def _next_step(recipe: Recipe, run: RunDir) -> str:
    stops = [event["iteration"] for event in run.events() if event["kind"] == "stopped"]
    if stops and stops[-1] == run.rows()[-1]["iteration"]:  # a training that went further has later rows
        return ", train.stop ended it; --set train.stop=null goes further"
    if isinstance(recipe, TrainedRecipe):
        return "; --set train.iterations=N goes further"
    if is_dry_push(recipe):
        return "; nothing was uploaded: push again without --dry-run, with another --out"
    return ""


def number_of_processes(recipe: Recipe, common: Common) -> int:
    """The processes of a command; :class:`RecipeError` if the stage works in one, or a launcher started others."""
    if common.processes not in {None, GROUP.size} and not launch.may_launch():
        raise RecipeError(f"--processes {common.processes}: a launcher started {GROUP.size}; leave out --processes")
    processes = common.processes or (recipe.train.processes if isinstance(recipe, TrainedRecipe) else 1)
    if processes > 1 and recipe.stage in ONE_PROCESS:
        raise RecipeError(f"{recipe.stage} works in one process: leave out --processes")
    return processes


def relaunch(recipe: Recipe, common: Common, processes: int, path: Path | None = None) -> int:
    """Run this command line in several processes, with one directory for all: ``path``, where the user gave none."""
    argv, path = sys.argv[1:], common.resume or common.out or path or fresh_path(recipe.stage)
    if common.out is None and common.resume is None:
        argv = [*argv, "--out", str(path)]
    try:
        return launch.relaunch(argv, processes, recipe.model.device)
    except Interrupted as error:
        raise Interrupted(f"{error}; resume with: {continuation(recipe, path)}", error.exit_code - 128) from error
