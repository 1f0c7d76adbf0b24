"""Evaluations of several adapters: a run for each in one folder, one base for all, one table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowopd_cli.cli import launch
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.execute import failing, number_of_processes, print_dry_run, relaunch
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.resolve import Plan, resolve
from flowopd_cli.cli.stage import continuation, run_stage
from flowopd_cli.errors import FAULTY, ArtifactError, Interrupted, RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.reports import comparison, report
from flowopd_cli.runs.adapter_ref import AdapterRef, run_of
from flowopd_cli.runs.evaluations import by_guidance, figures
from flowopd_cli.runs.layout import REPORT, fresh_path, resume_command
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import atomic_write, is_dir, is_file
from flowopd_cli.system.json_files import plain, read_json_value
from flowopd_cli.system.paths import below

if TYPE_CHECKING:  # it needs torch
    from flowopd_cli.stages.evaluation.shared import Shared

LIST = "evaluations.json"  # of a folder of evaluations: the names of its runs, in their order


def is_folder_of_evaluations(path: Path | None) -> bool:
    """Whether :func:`execute_each` made the folder."""
    return path is not None and is_file(path / LIST)


def single_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs at ``paths``, those of a folder of evaluations in its place; :class:`ArtifactError` if it is damaged."""
    return [run for path in paths for run in (_listed(path) if is_folder_of_evaluations(path) else [path])]


def resolve_each(common: Common, values: Mapping[str, Any], adapters: Sequence[str]) -> dict[Path, Plan]:
    """The plan of each evaluation by the path of its run, below ``--out`` or in the folder of ``--resume``.

    Raises :class:`RecipeError` or :class:`ArtifactError`: an adapter is named twice, adapters are of different bases,
    the folder is in use, or its runs differ in more than their adapters.
    """
    if common.resume is not None:
        return _resumed(common, values, common.resume)
    return _fresh(common, values, adapters, common.out or fresh_path("eval"))


def execute_each(plans: Mapping[Path, Plan], common: Common) -> None:
    """Make the runs of the plans but those that are done, or with ``--dry-run`` describe them; then compare them."""
    folder, flags = next(iter(plans)).parent, common
    common = common if common.resume else replace(common, out=folder)
    console = Console(quiet=common.quiet, main=launch.is_main())
    remarks = {path: [*launch.REMARKS, *_remarks(plan, path, common)] for path, plan in plans.items()}
    for remark in dict.fromkeys(remark for of_run in remarks.values() for remark in of_run):
        console.note(f"note: {remark}")
    recipe = next(iter(plans.values())).recipe
    if common.dry_run:
        for path, plan in plans.items():
            print_dry_run(console, plan.recipe, remarks[path], as_json=common.json)
        return
    processes = number_of_processes(recipe, common)
    if processes > 1 and launch.may_launch():
        raise typer.Exit(relaunch(recipe, flags, processes, folder))
    pending = [path for path in plans if not common.resume or common.overrides or not _is_done(path)]
    if GROUP.size > 1:
        GROUP.start()  # after which the first process may finish a run
    with GROUP.together(), redirect_stdout(sys.stderr):
        shared = _prepared(plans, common)
    _run(plans, pending, shared, common, console)
    if launch.is_main():
        _compare(folder, plans, common, console)


def _fresh(common: Common, values: Mapping[str, Any], adapters: Sequence[str], folder: Path) -> dict[Path, Plan]:
    """The plan of each new run by its path; every adapter has a say in the base."""
    repeated = next((ref for ref in adapters if adapters.count(ref) > 1), None)
    if repeated is not None:
        raise RecipeError(f"--adapter {repeated}: named twice")
    plans: dict[Path, Plan] = {}
    for name, ref in zip(_names(adapters), adapters, strict=True):
        own = replace(common, out=folder / name)
        plans[folder / name] = resolve("eval", own, {**values, "adapter": ref}, refs=adapters)
    if is_run(folder):
        raise ArtifactError(f"{folder}: is a run; several adapters need a folder of their own: give --out a fresh name")
    if is_dir(folder) and any(folder.iterdir()) and not (common.force and is_folder_of_evaluations(folder)):
        own_list = is_folder_of_evaluations(folder)
        way_out = f"go on with {resume_command('eval', folder)}, replace it with --force, or " if own_list else ""
        raise ArtifactError(f"{folder}: is not empty; {way_out}give --out a fresh name")
    return plans


def _resumed(common: Common, values: Mapping[str, Any], folder: Path) -> dict[Path, Plan]:
    """The plan of each run of a folder by its path; they differ in their adapters alone."""
    paths = _listed(folder)
    absent = next((path for path in paths if not is_run(path)), None)
    if absent is not None:
        way_out = "start all again with --force, or resume the others one by one"
        raise ArtifactError(f"{absent}: no run, but {folder / LIST} names it: {way_out}")
    plans = {path: resolve("eval", replace(common, resume=path), values) for path in paths}
    first, *others = plans
    for other in others:
        if _protocol(plans[other]) != _protocol(plans[first]):
            raise RecipeError(f"{other}: differs from {first} in more than its adapter; resume them one by one")
    return plans


def _listed(folder: Path) -> list[Path]:
    """The runs that a folder's list names; :class:`ArtifactError` if it is damaged."""
    names = read_json_value(folder / LIST, "list of evaluations")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ArtifactError(
            f"{folder / LIST}: damaged list of evaluations; name its runs one by one, or give --out a fresh name"
        )
    return [below(folder, name) for name in names]


def _protocol(plan: Plan) -> dict[str, Any]:
    return plan.recipe.model_dump(exclude={"adapter": True, "eval": {"fail_under"}})


def _names(adapters: Sequence[str]) -> list[str]:
    """A name for the run of each adapter: that of its own run, folder, file or repository."""
    names: list[str] = []
    for reference in map(AdapterRef.parse, adapters):
        path = Path(reference.location)
        stem = reference.location.rpartition("/")[2]
        if reference.kind in {"run", "folder"}:
            stem = path.stem if is_file(path) else (run_of(path) or path.resolve()).name
        stem = stem.lstrip(".") or reference.kind
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        names.append(next(name for name in numbered if name not in names))
    return names


def _remarks(plan: Plan, path: Path, common: Common) -> list[str]:
    recorded = RunDir.open(path, writes=False).recipe() if common.resume else None
    inputs = {"adapters": plan.adapters, "out": common.out, "recorded": recorded, "start": plan.start}
    return [*plan.remarks, *check(plan.recipe, dry_run=common.dry_run, **inputs)]


def _is_done(path: Path) -> bool:
    return RunDir.open(path, writes=False).manifest().status == "done"


def _prepared(plans: Mapping[Path, Plan], common: Common) -> Shared:
    """The suites and pictures of all runs; then list and create these, so that a later ``--resume`` knows them.

    Runs of an earlier list, which ``--force`` replaces, are removed.
    """
    from flowopd_cli.stages.evaluation.shared import Shared
    from flowopd_cli.stages.evaluation.suites import plan_requests

    recipe = next(iter(plans.values())).recipe
    assert isinstance(recipe, EvalRecipe)
    shared = Shared(plan_requests(recipe), several=True)
    if not launch.is_main() or common.resume:
        return shared
    folder = Path(str(common.out))
    for path in _listed(folder) if is_folder_of_evaluations(folder) else ():
        if path not in plans and is_run(path):
            RunDir.open(path).delete()
    atomic_write(folder / LIST, json.dumps([path.name for path in plans]))
    for path, plan in plans.items():
        run = RunDir.create(path, "eval", force=common.force)
        run.start(plan.recipe)
        run.finish("interrupted")
    return shared


def _run(plans: Mapping[Path, Plan], pending: Sequence[Path], shared: Shared, common: Common, console: Console) -> None:
    """Make the pending runs, on one base with one set of rewards."""
    again = continuation(next(iter(plans.values())).recipe, common.resume or Path(str(common.out)))
    try:
        for path in pending:
            run = RunDir.open(path) if launch.is_main() else RunDir(path, writes=False)
            with redirect_stdout(sys.stderr):
                run_stage(replace(plans[path], shared=shared), run, console, resume=common.resume is not None)
    except Interrupted as error:
        raise Interrupted(f"stopped; resume with: {again}", error.exit_code - 128) from error


def _compare(folder: Path, plans: Mapping[Path, Plan], common: Common, console: Console) -> None:
    """Show the table of all runs, write it as a report, and print the result."""
    paths = list(plans)
    result, models, against = comparison.compared(paths)
    comparison.show(console, models, against)
    page = report.beside(folder / REPORT, paths, console)
    faults = []
    for path, plan in plans.items():
        if isinstance(plan.recipe, EvalRecipe):
            suites = figures(by_guidance(RunDir.open(path, writes=False))[0].results)
            faults += [f"{path.name}: {line}" for line in failing(plan.recipe, suites)]
    tree = {"run": str(folder), "runs": {path.name: str(path) for path in paths}, **result, "report": page}
    console.result(json.dumps(plain(tree | ({"below": faults} if faults else {}))) if common.json else str(folder))
    for line in faults:
        typer.echo(line, err=True)
    if faults:
        raise typer.Exit(FAULTY)
