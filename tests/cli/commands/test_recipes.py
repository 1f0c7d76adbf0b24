"""``flowopd recipes``: listed with what they do, copied with their comments, validated with all that is wrong."""

import importlib.util
import json
from pathlib import Path

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.validate import validate

SHIPPED = Path(__file__).resolve().parents[3] / "recipes"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_listed_with_stage_base_and_a_description(flowopd):
    rows = json.loads(flowopd("recipes", "ls", "--json")[1])
    assert [row["recipe"] for row in rows] == [*sorted(recipes.shipped()), *sorted(recipes.shipped_studies())]
    studies = [row for row in rows if row["stage"] == "study"]
    assert {row["recipe"] for row in studies} == set(recipes.shipped_studies())
    assert all(row["base"] == "toy" and row["what"].endswith("?") for row in studies)
    for row in rows[: -len(studies)]:
        recipe = recipes.load(recipes.find(row["recipe"]))
        assert (row["stage"], row["base"]) == (recipe.stage, recipe.model.pretrained)
        assert len(row["what"].split()) > 3
    lines = flowopd("recipes", "ls")[1].splitlines()
    assert lines[0].split() == ["RECIPE", "STAGE", "BASE", "WHAT"]
    assert len(lines) == len(rows) + 1


def test_a_copy_has_the_comments_and_replaces_nothing_without_force(flowopd):
    code, out, err = flowopd("recipes", "copy", "toy/distill")
    assert (code, out) == (0, "distill.yaml\n")
    assert "flowopd distill --recipe distill.yaml" in err
    assert Path("distill.yaml").read_text() == (SHIPPED / "toy" / "distill.yaml").read_text()
    Path("distill.yaml").write_text("mine")
    code, out, err = flowopd("recipes", "copy", "toy/distill")
    assert (code, out) == (2, "")
    assert "distill.yaml: exists already; give another name, or replace it with --force" in err
    assert Path("distill.yaml").read_text() == "mine"
    assert flowopd("recipes", "copy", "toy/distill", "--force")[0] == 0
    assert Path("distill.yaml").read_text() != "mine"
    Path("folder").mkdir()
    assert flowopd("recipes", "copy", "toy/merge", "folder")[1] == "folder/merge.yaml\n"


def test_validate_exits_with_3_and_prints_faults_or_costs(flowopd):
    Path("c.yaml").write_text("stage: [\n")
    code, out, err = flowopd("recipes", "validate", "c.yaml", "toy/teacher-ocr", "--json")
    assert (code, err) == (3, "")
    faulty, sound = json.loads(out)
    assert (faulty["ok"], faulty["stage"], len(faulty["faults"])) == (False, None, 1)
    assert (sound["ok"], sound["faults"], sound["stage"]) == (True, [], "teacher")
    assert sound["arithmetic"]["optimizer steps"] == 42
    code, out, _ = flowopd("recipes", "validate", "toy/teacher-ocr")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert lines[:3] == ["toy/teacher-ocr: ok", "optimizer steps: 42", "pictures in all: 4,032"]
    assert lines[3].startswith("memory in all")
    code, out, _ = flowopd("recipes", "validate", "nothing")
    assert code == 3
    assert "nothing: 1 fault\n  no recipe 'nothing'" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "rewards: [{name: toy-ocr}]\nprompts: [{source: 'toy:ocr'}]\ntrain: {iteration: 3, lr: -1}",
            ["train.lr: Input should be greater than 0", "'train.iteration', did you mean 'iterations'?"],
        ),
        ("rewards: [{name: toy-orc, wieght: 2}]\nprompts: [{source: 'toy:ocr'}]", ["wieght", "toy-orc"]),
        ("rewards: [{name: orc}]\nprompts: [{source: 'toy:orc', weight: -1}]", ["weight", "'orc'", "toy:orc"]),
        ("model: {pretrained: toy, family: sd4, size: 3}\nrewards: [{name: ocr}]", ["size", "prompts", "sd4"]),
        ("rewards: 3\nprompts: [4, {source: [5]}]\nmodel: []", ["rewards", "prompts.0", "prompts.1.source", "model"]),
        ("rewards: [{name: 'remote:http://u:secret@h'}]\nprompts: [{source: 'toy:ocr'}]", ["rewards.0"]),
        ("stage: eval\nmodel: {pretrained: toy}\neval: {suites: [ocr, genevel, 3], stepss: 4}", ["genevel", "stepss"]),
    ],
)
def test_every_fault_is_found_and_those_of_the_form_hide_no_unknown_name(text, words):
    Path("mine.yaml").write_text(text if "stage" in text.split(":")[0] else f"stage: teacher\n{text}\n")
    faults = validate("mine.yaml").faults
    assert len(set(faults)) == len(faults)
    for word in words:
        assert any(word in fault for fault in faults), faults
    assert "secret@" not in " ".join(faults)


def test_a_package_that_only_this_machine_lacks_is_a_note(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name))
    text = "stage: teacher\nmodel: {pretrained: toy}\nprompts: [{source: 'toy:ocr'}]\nrewards: [{name: ocr}]\n"
    Path("mine.yaml").write_text(f"{text}train: {{track: tensorboard}}\n")
    validation = validate("mine.yaml")
    assert validation.faults == ()
    assert validation.notes == ("tensorboard is not installed: pip install 'flowopd[track]'",)


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_every_shipped_recipe_is_sound(name):
    assert validate(name).faults == ()
