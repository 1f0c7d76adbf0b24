"""Whether every task of the prompts has the teacher and the reward that a stage needs for it. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from flowopd_cli.errors import RewardError, RoutingError
from flowopd_cli.recipe import ColdstartRecipe, RewardSpec, TeacherRecipe, TrainedRecipe


def check_tasks(recipe: TrainedRecipe, tasks: Iterable[str]) -> None:
    """Refuse tasks that the recipe could not learn: the stages ask with the loaded prompts', ``--dry-run`` earlier.

    Raises:
        RoutingError: a task has no teacher.
        RewardError: a task has no reward (in ``distill``, where rewards are only logged: none of them has one).
    """
    tasks = set(tasks)
    if isinstance(recipe, TeacherRecipe):
        _refuse_unrewarded(recipe.rewards, tasks)
    elif isinstance(recipe, ColdstartRecipe):
        _refuse_unrouted("teachers", recipe.teachers, tasks)
        if recipe.rewards:
            _refuse_unrewarded(recipe.rewards, tasks)
    else:
        _refuse_unrouted("routing", recipe.routing, tasks)
        if recipe.opd.log_rewards_every and tasks and not _rewarded(recipe.rewards, tasks):
            raise RewardError(
                f"opd.log_rewards_every is {recipe.opd.log_rewards_every}, but no reward is for the prompts' tasks "
                f"({', '.join(sorted(tasks))}): add one, or set it to 0"
            )


def _refuse_unrouted(section: str, routes: Collection[str], tasks: set[str]) -> None:
    for task in sorted(tasks - set(routes)):
        raise RoutingError(
            f"prompts of task {task!r} have no teacher: add --teacher {task}=REF, or drop those prompts "
            f"({section} has {', '.join(sorted(routes))})"
        )


def _refuse_unrewarded(rewards: Sequence[RewardSpec], tasks: set[str]) -> None:
    for task in sorted(tasks - _rewarded(rewards, tasks)):
        named = ", ".join(sorted({str(spec.task) for spec in rewards}))
        raise RewardError(
            f"prompts of task {task!r} have no reward (rewards are for {named}): add one with that task, or drop "
            "those prompts"
        )


def _rewarded(rewards: Sequence[RewardSpec], tasks: set[str]) -> set[str]:
    scored = {spec.task for spec in rewards}
    return tasks if None in scored else {task for task in tasks if task in scored}
