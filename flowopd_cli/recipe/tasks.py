"""Whether every task of the prompts has the teacher and the reward that a stage needs for it, and every prompt the
weights of its teachers. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.targets import shares
from flowopd_cli.errors import RecipeError, RewardError, RoutingError
from flowopd_cli.recipe import DistillRecipe, TeacherRecipe, TrainedRecipe


def check_tasks(recipe: TrainedRecipe, tasks: Iterable[str]) -> None:
    """Refuse tasks that lack a teacher or a reward.

    Raises :class:`RecipeError`: in ``teacher``, all rewards of a task have weight 0.
    Raises :class:`RoutingError`: a task has no teacher.
    Raises :class:`RewardError`: a task has no reward (in ``distill``, where rewards are only logged: no task has one).
    """
    tasks = set(tasks)
    if not isinstance(recipe, TeacherRecipe):
        is_distill = isinstance(recipe, DistillRecipe)
        section, teachers = ("routing", recipe.routing) if is_distill else ("teachers", recipe.teachers)
        for task in sorted(tasks - set(teachers)):
            raise RoutingError(
                f"prompts of task {task!r} have no teacher: add --teacher {task}=REF, or drop those prompts "
                f"({section} has {', '.join(sorted(teachers))})"
            )
    for task in sorted(tasks) if isinstance(recipe, TeacherRecipe) else ():
        weights = [spec.weight for spec in recipe.rewards if spec.task in (None, task)]
        if weights and not any(weights):
            raise RecipeError(
                f"rewards: all of task {task!r} have weight 0, so nothing is learned from it: give one a weight"
            )
    scored = {spec.task for spec in recipe.rewards}
    unrewarded = set() if None in scored or not scored else tasks - scored
    listed = ", ".join(sorted(map(str, scored)))
    if not isinstance(recipe, DistillRecipe):
        for task in sorted(unrewarded):
            raise RewardError(
                f"prompts of task {task!r} have no reward (rewards are for {listed}): add one with that task, or drop "
                "those prompts"
            )
    elif recipe.opd.log_rewards_every and tasks and tasks == unrewarded:
        raise RewardError(
            f"opd.log_rewards_every is {recipe.opd.log_rewards_every}, but no reward is for the prompts' tasks "
            f"({', '.join(sorted(tasks))}): add one, or set it to 0"
        )


def check_weights(recipe: DistillRecipe, prompts: Iterable[Prompt]) -> None:
    """Refuse prompts whose metadata lack a weight of their teachers (:class:`PromptError`)."""
    weights = {task: [spec.share for spec in mixture.values()] for task, mixture in recipe.mixtures.items()}
    for prompt in prompts:
        if prompt.task in weights:
            shares(weights[prompt.task], prompt)
