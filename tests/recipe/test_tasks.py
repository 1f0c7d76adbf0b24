"""Tasks against teachers and rewards: what the three training stages refuse."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RewardError, RoutingError
from flowopd_cli.recipe.tasks import check_tasks

OCR = [{"name": "toy-ocr", "task": "ocr"}]
TEACHERS = {"ocr": {"ref": "base"}, "geneval": {"ref": "base"}}
LOGGED = {"routing": TEACHERS, "rewards": OCR, "opd": {"log_rewards_every": 1}}


@pytest.mark.parametrize(
    ("stage", "sections", "tasks", "words"),
    [
        ("teacher", {"rewards": OCR}, {"ocr"}, None),
        ("teacher", {"rewards": OCR}, {"ocr", "geneval"}, "task 'geneval' have no reward"),
        ("teacher", {"rewards": [{"name": "toy-quality"}]}, {"ocr", "geneval"}, None),
        ("coldstart", {"teachers": TEACHERS, "rewards": OCR}, {"ocr", "geneval"}, "task 'geneval' have no reward"),
        ("coldstart", {"teachers": TEACHERS}, {"poetry"}, "task 'poetry' have no teacher"),
        ("distill", LOGGED, {"ocr", "geneval"}, None),
        ("distill", LOGGED, {"geneval"}, r"no reward is for the prompts' tasks \(geneval\)"),
        ("distill", LOGGED, {"poetry"}, "add --teacher poetry=REF"),
    ],
)
def test_tasks_without_a_teacher_or_a_reward_are_refused(stage, sections, tasks, words):
    recipe = recipes.build({"stage": stage, "prompts": [{"source": "toy:all"}], **sections})
    if words is None:
        check_tasks(recipe, tasks)
    else:
        with pytest.raises((RewardError, RoutingError), match=words):
            check_tasks(recipe, tasks)
