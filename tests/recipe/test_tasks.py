"""Tasks against teachers and rewards: what the three training stages refuse."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RewardError, RoutingError
from flowopd_cli.recipe.tasks import check_tasks

PROMPTS = [{"source": "toy:all"}]
OCR = [{"name": "toy-ocr", "task": "ocr"}]
TEACHERS = {"ocr": {"ref": "base"}, "geneval": {"ref": "base"}}


def build(stage, **sections):
    return recipes.build({"stage": stage, "prompts": PROMPTS, **sections})


def test_a_teacher_needs_a_reward_for_every_task():
    recipe = build("teacher", rewards=OCR)
    check_tasks(recipe, {"ocr"})
    with pytest.raises(RewardError, match="task 'geneval' have no reward"):
        check_tasks(recipe, {"ocr", "geneval"})
    check_tasks(build("teacher", rewards=[{"name": "toy-quality"}]), {"ocr", "geneval"})


def test_a_cold_start_drops_no_task():
    recipe = build("coldstart", teachers=TEACHERS, rewards=OCR)
    with pytest.raises(RewardError, match="task 'geneval' have no reward"):
        check_tasks(recipe, {"ocr", "geneval"})
    check_tasks(build("coldstart", teachers=TEACHERS), {"ocr", "geneval"})
    with pytest.raises(RoutingError, match="task 'poetry' have no teacher"):
        check_tasks(recipe, {"poetry"})


def test_a_student_logs_rewards_of_some_tasks_but_not_of_none():
    recipe = build("distill", routing=TEACHERS, rewards=OCR, opd={"log_rewards_every": 1})
    check_tasks(recipe, {"ocr", "geneval"})
    with pytest.raises(RewardError, match=r"no reward is for the prompts' tasks \(geneval\)"):
        check_tasks(recipe, {"geneval"})
    with pytest.raises(RoutingError, match="add --teacher poetry=REF"):
        check_tasks(recipe, {"poetry"})
