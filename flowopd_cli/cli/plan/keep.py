"""``--keep student``: a student's own frozen start teaches the tasks that it was distilled on. No torch."""

from __future__ import annotations

from pathlib import Path

from flowopd_cli.cli.plan.check import rows_of, tasks_of
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import DistillRecipe, PromptSpec, TeacherSpec
from flowopd_cli.recipe.fields import INIT
from flowopd_cli.runs.adapter_ref import AdapterRef, run_of
from flowopd_cli.runs.run import RunDir

STUDENT = "student"


def keep_tasks(recipe: DistillRecipe, keep: str) -> tuple[DistillRecipe, str]:
    """Let ``adapter.init`` teach its tasks that have no teacher, at its own guidance, on its prompts of tasks without.

    Also returns a remark on what was kept.

    Raises :class:`RecipeError`: ``keep`` is not ``student``, or the tasks of ``adapter.init`` are not recorded.
    """
    if keep != STUDENT:
        raise RecipeError(f"--keep {keep[:40]}: write --keep {STUDENT}")
    init = recipe.adapter.init
    student = None if init is None else _recorded(init)
    if student is None:
        raise RecipeError(
            f"--keep {STUDENT}: {init or 'the base'} is not a run of distill, which records its tasks: name each by "
            f"--teacher TASK={INIT}, and its prompts by --prompts"
        )
    old_tasks = [task for task in student.routing if task not in recipe.routing]
    own = TeacherSpec(ref=INIT, guidance=student.sampling.guidance)
    present = set().union(*(tasks_of(spec, rows_of(spec)) for spec in recipe.prompts))
    sources = [spec for spec in student.prompts if _adds_tasks(spec, recipe, present)]
    update = {"routing": recipe.routing | dict.fromkeys(old_tasks, own), "prompts": (*recipe.prompts, *sources)}
    listed = ", ".join(old_tasks) or "none, all have teachers"
    added = f"; prompts added: {', '.join(spec.source for spec in sources)}" if sources else ""
    return recipe.model_copy(update=update), f"tasks kept by {init}: {listed}{added}"


def _adds_tasks(spec: PromptSpec, recipe: DistillRecipe, present: set[str]) -> bool:
    """Whether a source has tasks that are not ``present``; one whose tasks only its plugin knows may have them."""
    tasks = tasks_of(spec, rows_of(spec))
    return not tasks <= present if tasks else spec.source not in {other.source for other in recipe.prompts}


def _recorded(init: str) -> DistillRecipe | None:
    reference = AdapterRef.parse(init)
    run = run_of(Path(reference.location)) if reference.kind in {"run", "folder"} else None
    recipe = None if run is None else RunDir.open(run, writes=False).recipe()
    return recipe if isinstance(recipe, DistillRecipe) else None
