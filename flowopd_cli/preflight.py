"""What can be refused before anything is loaded: unknown names, missing files, tasks without a route. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.errors import ArtifactError, PromptError, RewardError, RoutingError
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
from flowopd_cli.refs import AdapterRef
from flowopd_cli.run import RunDir


def check(recipe: Recipe) -> list[str]:
    """Refuse what could not run; returns remarks about what could, but may not be meant.

    Raises:
        FlowOPDError: a name is unknown, a file or adapter is missing, adapters have different bases, a task has no
            teacher or no reward.
    """
    registry.MODELS.check(recipe.model.family)
    _check_base(recipe.model.pretrained)
    refs = dict(adapter_refs(recipe))
    for role, ref in refs.items():
        _check_ref(role, ref)
    _check_one_base([AdapterRef.parse(ref) for ref in refs.values()])
    for spec in getattr(recipe, "rewards", ()):
        registry.REWARDS.check(spec.name)
    if isinstance(recipe, EvalRecipe):
        for suite in recipe.eval.suites:
            registry.SUITES.check(registry.suite_name(suite, recipe.model.pretrained))
    return _check_tasks(recipe)


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


def tasks_of(spec: PromptSpec) -> set[str]:
    """The tasks that a prompt source names; empty where only reading it by its own plugin would tell.

    Raises:
        PromptError: there is no such source or file, or a line of it is not JSON.
    """
    path = Path(spec.source)
    if spec.source in registry.PROMPTS.names():
        known = registry.PROMPT_TASKS.get(spec.source, ())
        return {spec.task} if spec.task else set(known)
    if path.suffix not in {".txt", ".jsonl"}:
        registry.PROMPTS.target(spec.source)
    if not path.is_file():
        raise PromptError(f"prompts: {spec.source}: no such file")
    if spec.task or path.suffix == ".txt":
        return {spec.task} if spec.task else set()
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    tasks = (_task_of_line(f"{path}:{number}", line) for number, line in lines if line.strip())
    return {task for task in tasks if task}


def _task_of_line(place: str, line: str) -> str | None:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{place}: not JSON ({error})") from error
    return row.get("task") if isinstance(row, dict) else None


def _check_base(pretrained: str) -> None:
    if pretrained in registry.BASES.names():
        return
    path = Path(pretrained)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ArtifactError(f"--base {pretrained}: not a diffusers pipeline folder (no model_index.json in it)")
        return
    local = path.is_absolute() or pretrained.startswith(".") or pretrained.count("/") != 1
    if local and "/" not in pretrained:
        registry.BASES.target(pretrained)
    if local:
        raise ArtifactError(f"--base {pretrained}: no such folder")


def _check_ref(role: str, ref: str) -> None:
    try:
        AdapterRef.parse(ref).check()
    except ArtifactError as error:
        raise ArtifactError(f"{role}: {error}") from error


def _check_one_base(refs: Sequence[AdapterRef]) -> None:
    """Adapters whose runs recorded different bases cannot meet."""
    recorded = [(ref.text, sha) for ref in refs if (sha := ref.base_sha256())]
    for text, sha in recorded[1:]:
        if sha != recorded[0][1]:
            first = recorded[0][0]
            raise ArtifactError(
                f"{first} and {text} were trained on different bases ({recorded[0][1][:12]}, {sha[:12]}): "
                "use adapters of one base"
            )


def _check_tasks(recipe: Recipe) -> list[str]:
    if not isinstance(recipe, TrainedRecipe):
        return []
    tasks = set().union(*(tasks_of(spec) for spec in recipe.prompts))
    if isinstance(recipe, TeacherRecipe):
        _check_rewarded(recipe, tasks)
        return []
    section, routes = (
        ("teachers", recipe.teachers) if isinstance(recipe, ColdstartRecipe) else ("routing", recipe.routing)
    )
    for task in sorted(tasks - set(routes)):
        raise RoutingError(
            f"prompts of task {task!r} have no teacher: add --teacher {task}=REF, or drop those prompts "
            f"({section} has {', '.join(sorted(routes))})"
        )
    known = not any(not tasks_of(spec) for spec in recipe.prompts)
    idle = sorted(set(routes) - tasks) if known else []
    return [f"teacher {task!r} is loaded, but no prompt has its task" for task in idle]


def _check_rewarded(recipe: TeacherRecipe, tasks: set[str]) -> None:
    scored = {spec.task for spec in recipe.rewards}
    if None in scored:
        return
    for task in sorted(tasks - scored):
        raise RewardError(f"prompts of task {task!r} have no reward: add one with that task, or drop those prompts")
