"""What can be refused before anything is loaded: unknown names, missing files, tasks without a route. No torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.cli.plan.adapters import check_base, check_bases, check_refs
from flowopd_cli.cli.plan.resolve import RANKLESS
from flowopd_cli.errors import ArtifactError, MergeError, MissingDependency, PromptError, RecipeError
from flowopd_cli.prompts.clauses import faulty
from flowopd_cli.prompts.files import SUFFIXES, Row, read_rows, repeats, target
from flowopd_cli.recipe import (
    ColdstartRecipe,
    DistillRecipe,
    EvalRecipe,
    MergeRecipe,
    PromptSpec,
    PushRecipe,
    Recipe,
    TeacherRecipe,
    TrainedRecipe,
)
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.reports.track import check_installed
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.paths import is_branch, is_hub_id

# Rewards that need something of a prompt's own text or metadata.
QUOTED = {"ocr", "toy-ocr"}
CLAUSED = {"geneval", "geneval-hf", "toy-geneval"}


def check(
    recipe: Recipe, *, adapters: Adapters | None = None, out: Path | None = None, dry_run: bool = False
) -> list[str]:
    """Refuse what could not run; returns remarks about what could, but may not be meant.

    ``out`` is where the run will be written, ``dry_run`` that nothing will be trained or uploaded, so that an adapter
    may still be to come.

    Raises:
        FlowOPDError: a name is unknown, a file or adapter is missing, adapters have different bases, a task has no
            teacher or no reward, or ``out`` holds what the recipe reads.
    """
    refs, adapters = dict(adapter_refs(recipe)), adapters or Adapters()
    absent = {role: ref for role, ref in refs.items() if AdapterRef.parse(ref).absent} if dry_run else {}
    refs = {role: ref for role, ref in refs.items() if role not in absent}
    check_refs(refs, adapters, fetch=not dry_run)
    if out is not None:
        _check_out(out, recipe, refs)
    check_bases(recipe.model, refs, adapters, fetch=not dry_run)
    if isinstance(recipe, PushRecipe):
        _check_push(recipe, dry_run)
    return [*(f"{role}: {ref}: is not there yet" for role, ref in absent.items()), *check_names(recipe)]


def check_names(recipe: Recipe) -> list[str]:
    """The part of :func:`check` that asks for no adapter: names, prompt files, tasks, settings that do nothing."""
    registry.MODELS.check(recipe.model.family)
    check_base(recipe.model)
    for spec in getattr(recipe, "rewards", ()):
        registry.REWARDS.check(spec.name)
    if isinstance(recipe, EvalRecipe):
        for suite in recipe.eval.suites:
            registry.SUITES.check(suite)
    if isinstance(recipe, MergeRecipe):
        _check_merge(recipe)
    return _check_training(recipe) if isinstance(recipe, TrainedRecipe) else []


def adapter_refs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Where in the recipe an adapter is named, and its reference."""
    if isinstance(recipe, TrainedRecipe) and recipe.adapter.init is not None:
        yield "adapter.init", recipe.adapter.init
    if isinstance(recipe, ColdstartRecipe):
        yield from ((f"teachers.{task}", spec.ref) for task, spec in recipe.teachers.items())
    if isinstance(recipe, DistillRecipe):
        yield from ((f"routing.{task}", spec.ref) for task, spec in recipe.routing.items())
        if recipe.anchor.beta > 0:
            yield "anchor", recipe.anchor.ref
    if isinstance(recipe, MergeRecipe):
        yield from ((f"adapters.{index}", ref) for index, ref in enumerate(recipe.adapters))
    if isinstance(recipe, EvalRecipe) and recipe.adapter is not None:
        yield "adapter", recipe.adapter
    if isinstance(recipe, PushRecipe):
        RunDir.open(recipe.run, writes=False)
        yield "run", recipe.run


def rows_of(spec: PromptSpec) -> list[Row]:
    """The rows of a prompt file, every line of it read and found sound; none for a registered source.

    Raises:
        PromptError: there is no such source or file, it has no such task, or a line of it cannot be used.
    """
    path = Path(spec.source)
    if spec.source in registry.PROMPTS.names():
        known = registry.PROMPT_TASKS.get(spec.source, ())
        if spec.task and known and spec.task not in known:
            raise PromptError(
                f"prompts: {spec.source}: no prompt in it of task {spec.task!r}; it has {', '.join(known)}"
            )
        return []
    if path.suffix not in SUFFIXES:
        registry.PROMPTS.target(spec.source)
    rows = read_rows(path, spec.task)
    if not rows:
        raise PromptError(f"prompts: {path}: no prompt in it")
    nameless = next((row for row in rows if row.task is None), None)
    if nameless is not None:
        raise PromptError(f"{nameless.place}: has no task: give it with --prompts FILE,task=NAME")
    return rows[: spec.limit]


def tasks_of(spec: PromptSpec) -> set[str]:
    """The tasks that a prompt source names; empty where only reading it by its own plugin would tell.

    Raises:
        PromptError: as :func:`rows_of`.
    """
    return _tasks_of(spec, rows_of(spec))


def _tasks_of(spec: PromptSpec, rows: Sequence[Row]) -> set[str]:
    if rows:
        return {str(row.task) for row in rows}
    return {spec.task} if spec.task else set(registry.PROMPT_TASKS.get(spec.source, ()))


def _check_prompts(recipe: TrainedRecipe, rows: Sequence[Row]) -> None:
    """Refuse prompts from files that a reward of the recipe could not score, as far as their text says.

    Raises:
        PromptError: names the line.
    """
    for spec in recipe.rewards if _scores(recipe) else ():
        for row in rows if spec.name in QUOTED | CLAUSED else ():
            if spec.task is not None and row.task != spec.task:
                continue
            if spec.name in QUOTED and target(row.text, row.metadata) is None:
                raise PromptError(
                    f"{row.place}: no text in double quotes for the reward {spec.name} to look for: {row.text[:80]!r}"
                )
            fault = faulty(row.metadata) if spec.name in CLAUSED else None
            if fault:
                raise PromptError(f"{row.place}: the reward {spec.name} needs metadata with clauses to judge: {fault}")


def _scores(recipe: TrainedRecipe) -> bool:
    """Whether the recipe's rewards are asked at all."""
    return not isinstance(recipe, DistillRecipe) or recipe.opd.log_rewards_every > 0


def _check_out(out: Path, recipe: Recipe, refs: dict[str, str]) -> None:
    """The directory that is written, and with ``--force`` emptied first, holds nothing that the recipe reads."""
    named = [AdapterRef.parse(ref) for ref in refs.values()]
    inputs = [ref.location for ref in named if ref.kind in {"run", "folder"}]
    inputs += recipe.push.evaluations if isinstance(recipe, PushRecipe) else ()
    target = Path(os.path.realpath(out))
    for text in inputs:
        source = Path(os.path.realpath(text))
        if target == source or target in source.parents:
            raise ArtifactError(f"--out {out}: {text} is what this command reads; give --out another name")


def _check_push(recipe: PushRecipe, dry_run: bool) -> None:
    repo = recipe.push.repo
    if not dry_run and not repo:
        raise RecipeError("push needs a repository (--repo OWNER/NAME), or --dry-run to write the folder only")
    if repo and not is_hub_id(repo):
        raise RecipeError(f"--repo {repo}: is no repository of the Hub: write it as OWNER/NAME")
    if recipe.push.revision is not None and not is_branch(recipe.push.revision):
        raise RecipeError(
            f"--revision {recipe.push.revision[:80]}: is no name of a branch, to which alone a push can go"
        )
    for path in recipe.push.evaluations:
        RunDir.open(path, writes=False)


def _check_merge(recipe: MergeRecipe) -> None:
    if "base" in {AdapterRef.parse(ref).kind for ref in recipe.adapters}:
        raise MergeError("base is no adapter: leave it out and lower the other weights instead")
    if recipe.merge.method in RANKLESS and recipe.merge.rank is not None:
        raise RecipeError(
            f"merge.rank {recipe.merge.rank} has no meaning for method {recipe.merge.method}, whose rank follows from "
            "its adapters: leave it out, or choose linear"
        )


def _check_training(recipe: TrainedRecipe) -> list[str]:
    check_installed(recipe.train.trackers)
    if recipe.train.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency("bitsandbytes", extra="int8")
    rows = [rows_of(spec) for spec in recipe.prompts]
    named = [_tasks_of(spec, own) for spec, own in zip(recipe.prompts, rows, strict=True)]
    check_tasks(recipe, set().union(*named))
    repeated = []
    for own in rows:
        _check_prompts(recipe, own)
        repeated += [remark] if (remark := repeats(own)) else []
    return [
        *repeated,
        *_idle_teachers(recipe, named),
        *_idle_window(recipe),
        *_idle_processes(recipe),
        *_idle_resampling(recipe),
    ]


def _idle_processes(recipe: TrainedRecipe) -> list[str]:
    """Processes that draw nothing, or wait for others: groups stay whole."""
    groups, processes = recipe.train.groups, max(recipe.train.processes, int(os.environ.get("WORLD_SIZE", "1")))
    if processes == 1 and recipe.model.shard:
        return ["model.shard does nothing with one process: the pieces of the base are one for each of train.processes"]
    if groups % processes == 0:
        return []
    most = -(-groups // processes)
    return [
        f"train.groups {groups} over {processes} processes: groups stay whole, so one draws {most} while another draws "
        f"{most - 1} and waits; a multiple of {processes} keeps all busy"
    ]


def _idle_resampling(recipe: TrainedRecipe) -> list[str]:
    if not recipe.train.resample_flat or isinstance(recipe, TeacherRecipe):
        return []
    return [f"train.resample_flat does nothing here: {recipe.stage} has no use for a group's spread"]


def _idle_teachers(recipe: TrainedRecipe, named: Sequence[set[str]]) -> list[str]:
    """Teachers of no prompt's task, where every source names its tasks."""
    routes = getattr(recipe, "teachers", None) or getattr(recipe, "routing", {})
    idle = sorted(set(routes).difference(*named)) if all(named) else []
    return [f"teacher {task!r} is loaded, but no prompt has its task" for task in idle]


def _idle_window(recipe: TrainedRecipe) -> list[str]:
    window, steps = recipe.sampling.window, recipe.sampling.steps
    if window is None or recipe.sampling.deterministic or window.start_max + window.size < steps:
        return []
    return ["sampling.window holds the last step, which draws no noise and is not trained"]
