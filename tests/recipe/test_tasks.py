"""Tasks against teachers and rewards: what the three training stages refuse."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RecipeError, RewardError, RoutingError
from flowopd_cli.recipe.tasks import check_tasks, check_weights

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


@pytest.mark.parametrize(
    ("stage", "weights", "refused"),
    [
        ("teacher", (0.0, 1.0), False),
        ("teacher", (1.0, -0.0), False),
        ("teacher", (0.0, 0.0), True),
        ("coldstart", (0.0, 0.0), False),
        ("distill", (0.0, 0.0), False),
    ],
)
def test_a_task_whose_rewards_all_have_weight_0_is_refused_where_rewards_teach(stage, weights, refused):
    rewards = [{"name": "toy-ocr", "weight": weights[0], "task": "ocr"}, {"name": "toy-quality", "weight": weights[1]}]
    teachers = {"teacher": {}, "coldstart": {"teachers": TEACHERS}, "distill": {"routing": TEACHERS}}[stage]
    recipe = recipes.build({"stage": stage, "prompts": [{"source": "toy:ocr"}], "rewards": rewards, **teachers})
    if refused:
        with pytest.raises(RecipeError, match="all of task 'ocr' have weight 0"):
            check_tasks(recipe, {"ocr"})
    else:
        check_tasks(recipe, {"ocr"})


def test_prompts_without_a_weight_of_their_teachers_are_refused():
    route = [{"ref": "a", "weight": "meta:share"}, {"ref": "b"}]
    prompts = [{"source": "toy:all"}]
    recipe = recipes.build({"stage": "distill", "prompts": prompts, "routing": {"ocr": route, "geneval": {"ref": "c"}}})
    sound = [Prompt("1", "x", "ocr", {"share": 0.5}), Prompt("2", "x", "geneval"), Prompt("3", "x", "other")]
    check_weights(recipe, sound)
    with pytest.raises(PromptError, match="prompt '4' of task 'ocr': the metadata entry share is missing"):
        check_weights(recipe, [*sound, Prompt("4", "x", "ocr")])
