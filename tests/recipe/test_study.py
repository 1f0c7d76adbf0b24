"""Study files: names, references, axes, and the messages about faulty ones."""

import pytest
import yaml

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import StudySpec, load_study
from flowopd_cli.recipe.study import references, replace_leaves

CHAIN = {
    "axes": {"lambda": [1, 1.5], "routing": {"hard": {}, "soft": {"student": {"opd.teachers": "mixed"}}}},
    "stages": {
        "teacher": {"recipe": "toy/teacher-ocr"},
        "student": {"recipe": "toy/distill", "set": {"adapter.init": "$teacher", "opd.extrapolate": "$lambda"}},
        "scores": {"recipe": "toy/eval", "set": {"adapter": "$student"}},
        "first": {"recipe": "toy/eval", "set": {"adapter": "$teacher", "eval.seed": "$seed"}},
    },
}


def changed(**fields):
    """The chain with other fields."""
    return yaml.safe_load(yaml.safe_dump({**CHAIN, **fields}))


def with_stage(name, **fields):
    return changed(stages={**CHAIN["stages"], name: fields})


def test_a_stage_depends_on_the_axes_of_its_ancestors():
    study = StudySpec.model_validate(CHAIN)
    assert {stage: study.uses(stage) for stage in study.stages} == {
        "teacher": [],
        "student": ["lambda", "routing"],
        "scores": ["lambda", "routing"],
        "first": [],
    }
    assert (study.parents("student"), study.parents("scores")) == (["teacher"], ["student"])
    assert study.seeds == (0,)


def test_overrides_of_axes_come_after_those_of_the_stage():
    study = StudySpec.model_validate(CHAIN)
    own = [("adapter.init", "$teacher"), ("opd.extrapolate", "$lambda")]
    assert study.overrides("student", {"lambda": 1, "routing": "hard"}) == own
    assert study.overrides("student", {"lambda": 1, "routing": "soft"}) == [*own, ("opd.teachers", "mixed")]


def test_a_parent_may_be_named_by_the_value_of_an_axis():
    both = {"student": {"routing": {"ocr": {"ref": "$other"}}}}
    study = StudySpec.model_validate(
        with_stage("other", recipe="toy/teacher-ocr") | {"axes": {"lambda": [1], "teachers": {"1": {}, "2": both}}}
    )
    assert study.parents("student") == ["teacher", "other"]
    assert study.values("teachers") == ["1", "2"]


def test_whole_texts_and_heads_of_paths_are_references():
    tree = {"a": ["$x", "$x y", {"b": "$y-z/best"}], "c": 1, "d": "$"}
    assert list(references(tree)) == ["x", "y-z"]
    new = {"a": [2, "$x y", {"b": "run-1/best"}], "c": 1, "d": "$"}
    assert replace_leaves(tree, {"$x": 2, "$y-z": "run-1"}) == new


TWICE = {"set": {"adapter.init": "$scores"}, "recipe": "toy/distill"}
FAULTS = [
    (changed(axis={}), r"study\.yaml:1: unknown key 'axis', did you mean 'axes'\?"),
    (with_stage("x", recipe="toy/eval", sets={}), "unknown key 'stages.x.sets', did you mean 'set'"),
    (with_stage("x", set={}), "stages.x.recipe: Field required"),
    (with_stage("x", recipe="toy/eval", set={"adapter": "$studnt"}), r"stages\.x: \$studnt is no axis, no stage"),
    (with_stage("x", recipe="toy/eval", set={"eval.steps": "$lamda"}), r"\$lamda is .*, did you mean 'lambda'\?"),
    (with_stage("teacher", **TWICE), "stages: each of .*scores -> student.* needs the one after it"),
    (with_stage("lambda", recipe="toy/eval"), "axes.lambda: the name belongs to a stage"),
    (changed(axes={"lambda": [1], "seed": [1]}), "axes.seed: the name belongs to a column"),
    (changed(axes={"lambda": [1], "beta": [1]}), r"axes\.beta: no stage uses it: write \$beta as the value"),
    (changed(axes={"lambda": [1, 1]}), "axes.lambda: the same value is there twice"),
    (changed(axes={"lambda": []}), "axes.lambda: write a list of values, or a mapping"),
    (changed(axes={"lambda": [1], "r": {"hard": 3}}), "axes.r: hard: write the overrides of each stage"),
    (changed(axes={"lambda": [1], "r": {"a": {"studnt": {}}}}), "axes.r: no stage 'studnt', did you mean 'student'"),
    (changed(reference={"lamda": 1}), "reference.lamda: no such axis, did you mean 'lambda'"),
    (changed(reference={"lambda": 3}), "reference.lambda: 3 is none of 1, 1.5"),
    (
        changed(axes={"lambda": [1, 1.5], "n": {1: {"student": {}}}}, reference={"n": 1}),
        "reference.n: 1 is none of '1'",
    ),
    (changed(seeds=[]), "seeds: "),
    (changed(seeds=[True]), "seeds: .*number, not .true"),
    (changed(stages={}), "stages: "),
]


@pytest.mark.parametrize(("tree", "message"), FAULTS)
def test_a_faulty_study_is_one_line(tree, message, tmp_path):
    path = tmp_path / "study.yaml"
    order = ["axis", *(key for key in tree if key != "axis")]
    path.write_text(yaml.safe_dump({key: tree[key] for key in order if key in tree}, sort_keys=False))
    with pytest.raises(RecipeError, match=message) as refused:
        load_study(path)
    assert str(refused.value).startswith(f"{path}:")
    assert "\n" not in str(refused.value)
