"""A student that keeps its tasks: what --keep and the reference ``init`` make of the recipe."""

import json
from pathlib import Path

import pytest
from support.tiny_adapters import TOY_SHA, write_adapter

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import complete_names
from flowopd_cli.registry import PROMPT_TASKS
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir

DISTILL = {
    "stage": "distill",
    "model": {"pretrained": "toy", "resolution": 32},
    "prompts": [{"source": "toy:all"}],
    "routing": {"geneval": {"ref": "base"}, "ocr": {"ref": "base"}},
}
pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def student(workplace):
    """A student of two tasks that answers at guidance 1.5, and the adapter of its best checkpoint."""
    run = RunDir.create(workplace / "student", "distill")
    prompts = [{"source": "toy:geneval"}, {"source": "toy:ocr", "weight": 2.0}]
    run.start(recipes.build({**DISTILL, "prompts": prompts, "sampling": {"guidance": 1.5}}))
    for folder in (run.adapter_dir, run.best_dir):
        write_adapter(folder)
    run.declare(Inputs(base=Base(ref="toy", sha256=TOY_SHA)))
    run.finish("done")
    return "student"


@pytest.fixture
def planned(flowopd, student):
    """The recipe and the notes of a distillation from the student."""

    def plan(*argv, init=student):
        code, out, err = flowopd("distill", "--init", init, *argv, "--dry-run", "--json")
        assert code == 0, err
        return json.loads(out)["recipe"], json.loads(out)["notes"]

    return plan


def routes(recipe):
    return {task: (spec["ref"], spec["guidance"]) for task, spec in recipe["routing"].items()}


def weights(recipe):
    return {spec["source"]: spec["weight"] for spec in recipe["prompts"]}


@pytest.mark.parametrize("init", ["student", "student/adapter", "student/best"])
def test_the_start_teaches_its_own_tasks_at_its_own_guidance_on_its_own_prompts(planned, init):
    argv = ("--teacher", "quality=base,guidance=2", "--prompts", "toy:quality", "--keep", "student")
    recipe, notes = planned(*argv, init=init)
    assert routes(recipe) == {"quality": ("base", 2.0), "geneval": (init, 1.5), "ocr": (init, 1.5)}
    assert weights(recipe) == {"toy:quality": 1.0, "toy:geneval": 1.0, "toy:ocr": 2.0}
    assert f"tasks kept by {init}: geneval, ocr; prompts added: toy:geneval, toy:ocr" in notes


def test_teachers_and_prompts_that_are_given_stay(planned):
    new = ("--teacher", "quality=base", "--teacher", "ocr=base,guidance=3", "--keep", "student")
    recipe, _ = planned(*new, "--set", "prompts=[{source: toy:quality}, {source: toy:ocr, limit: 5}]")
    assert routes(recipe) == {"quality": ("base", None), "ocr": ("base", 3.0), "geneval": ("student", 1.5)}
    assert weights(recipe) == {"toy:quality": 1.0, "toy:ocr": 1.0, "toy:geneval": 1.0}


def test_a_source_whose_tasks_only_its_plugin_knows_is_kept(planned, monkeypatch):
    monkeypatch.delitem(PROMPT_TASKS, "toy:ocr")
    recipe, _ = planned("--teacher", "quality=base", "--prompts", "toy:quality", "--keep", "student")
    assert weights(recipe) == {"toy:quality": 1.0, "toy:geneval": 1.0, "toy:ocr": 2.0}
    new = (
        "--teacher",
        "quality=base",
        "--keep",
        "student",
        "--set",
        "prompts=[{source: toy:quality}, {source: toy:ocr}]",
    )
    recipe, _ = planned(*new)
    assert weights(recipe) == {"toy:quality": 1.0, "toy:geneval": 1.0, "toy:ocr": 1.0}


def test_init_can_be_named_and_does_not_take_the_settings_of_another_teacher(planned):
    Path("mine.yaml").write_text(json.dumps({**DISTILL, "routing": {"ocr": {"ref": "old", "guidance": 3.0}}}))
    argv = ("--recipe", "mine.yaml", "--teacher", "ocr=init", "--teacher", "geneval=base", "--anchor", "init")
    recipe, _ = planned(*argv)
    assert routes(recipe) == {"ocr": ("student", None), "geneval": ("base", None)}
    assert recipe["anchor"]["ref"] == "student"


def test_without_an_adapter_to_start_from_init_is_the_base():
    recipe = complete_names(recipes.build({**DISTILL, "routing": {"geneval": {"ref": "init"}, "ocr": {"ref": "base"}}}))
    assert {spec.ref for spec in recipe.routing.values()} == {"base"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--keep all --init student", "--keep all: write --keep student"),
        (
            "--keep student",
            "the base is not a run of distill, which records its tasks: name each by --teacher TASK=init",
        ),
        ("--keep student --init teacher", "teacher is not a run of distill"),
        ("--keep student --init hub:me/m", "hub:me/m is not a run of distill"),
        ("--keep student --init none", "none is not a run of distill"),
        ("--keep student --resume student", "--resume uses the run's own recipe"),
    ],
)
def test_a_student_without_recorded_tasks_is_refused_in_one_line(flowopd, student, trained, argv, words):
    trained("teacher")
    start = ["distill", *argv.split(), *([] if "--resume" in argv else ["--base", "toy", "--teacher", "quality=base"])]
    code, out, err = flowopd(*start, "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
