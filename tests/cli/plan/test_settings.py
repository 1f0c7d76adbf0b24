"""Settings that ruin a run are refused or remarked on, before the start; settings without effect are remarked on."""

import json
import re

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.settings import check_guidance, check_step_weight, setting_checks
from flowopd_cli.errors import RecipeError

TOY = {"pretrained": "toy", "resolution": None}
COMMON = {"model": TOY, "prompts": [{"source": "toy:ocr"}]}
REWARD = {"rewards": [{"name": "toy-ocr"}]}
GUIDED = {"ocr": {"ref": "base", "guidance": 2.0}}
TEACHER = {"stage": "teacher", **COMMON, **REWARD}
COLDSTART = {"stage": "coldstart", **COMMON, **REWARD, "teachers": GUIDED}
DISTILL = {"stage": "distill", **COMMON, "routing": GUIDED}
EVAL = {"stage": "eval", "model": TOY}
LAST = {"size": 2, "start_min": 6, "start_max": 6}
EIGHT = {"steps": 8, "kernel": "cps"}
LOGGED = {"opd": {"log_rewards_every": 1}}
AWM = {"algorithm": "awm", "sampling": {"kernel": "ode"}}
FLUX = {"pretrained": "black-forest-labs/FLUX.1-dev", "family": "flux"}


def remarks(recipe, start=None):
    return [remark for run in setting_checks(recipe, start) for remark in run() or ()]


def test_fields_without_effect_are_remarked_on_where_they_differ_from_the_recipe_that_was_changed():
    start = recipes.build({**TEACHER, "grpo": {"clip": 0.1, "beta": 0.5}})
    data = {**TEACHER, **AWM, "grpo": {"clip": 0.1, "beta": 0.2}}
    assert remarks(recipes.build(data), start) == ["grpo.beta: has no effect, because algorithm is awm"]
    assert len(remarks(recipes.build(data), recipes.build(DISTILL))) == 2  # of another stage


@pytest.mark.parametrize(
    ("data", "sections", "expected"),
    [
        (TEACHER, {}, []),
        (COLDSTART, {}, []),
        (DISTILL, {}, []),
        (TEACHER, {"sampling": {"steps": 8, "window": LAST}}, ["sampling.window holds the last step, which draws no"]),
        (TEACHER, {"sampling": {"steps": 8, "window": {"size": 2, "start_max": 5}}}, []),
        (TEACHER, {"train": {"groups": 8, "processes": 4}}, []),
        (TEACHER, {"train": {"groups": 3, "processes": 2}}, ["train.groups 3 over 2 processes: groups stay whole"]),
        (TEACHER, {"model": {**TOY, "shard": True}}, ["model.shard has no effect with one process"]),
        (TEACHER, {"train": {"resample_flat": 4}}, []),
        (DISTILL, {"train": {"resample_flat": 4}}, ["train.resample_flat: has no effect, because distill"]),
        (TEACHER, {"train": {"refill": 4}}, []),
        (TEACHER, {"nft": {"beta": 0.1}}, ["nft.beta: has no effect, because algorithm is grpo"]),
        (TEACHER, {**AWM, "grpo": {"clip": 0.1}}, ["grpo.clip: has no effect, because algorithm is awm"]),
        (TEACHER, {**AWM, "awm": {"clip": 0.1}}, []),
        (COLDSTART, {"train": {"refill": 4}}, ["train.refill: has no effect, because coldstart"]),
        (COLDSTART, {"train": {"updates": 1}}, []),
        (COLDSTART, {"train": {"updates": 4}}, ["train.updates: has no effect, because a cold start makes one"]),
        (COLDSTART, {"train": {"group_size": 1}}, ["rewards choose nothing with train.group_size 1"]),
        (COLDSTART, {"rewards": []}, ["train.group_size 24 without rewards: the first picture of each group is kept"]),
        (TEACHER, {"train": {"ema_decay": 0, "ema_every": 2}}, ["train.ema_every: has no effect"]),
        (TEACHER, {"train": {"groups": 5, "group_size": 2, "updates": 6}}, ["train.updates 6: the 10 pictures of an"]),
        (TEACHER, {"train": {"query": {"steps": 9}}}, []),
        (TEACHER, {"train": {"query": {"steps": 10}}}, ["train.query.steps 10: only 9 steps"]),
        (TEACHER, {"train": {"iterations": 5, "warmup": 9}}, []),
        (TEACHER, {"train": {"iterations": 5, "warmup": 10}}, ["train.warmup 10: the run makes 10 optimizer steps"]),
        (TEACHER, {"rewards": [*REWARD["rewards"], {"name": "toy-quality", "weight": 0}]}, ["rewards.1.weight is 0"]),
        (DISTILL, REWARD, ["rewards: has no effect, because opd.log_rewards_every is 0"]),
        (DISTILL, {**REWARD, **LOGGED}, []),
        (DISTILL, {"opd": {"clip": 0.1}}, ["opd.clip: has no effect, because opd.estimator is pathwise"]),
        (DISTILL, {"opd": {"adv_clip": 2}}, ["opd.adv_clip: has no effect, because opd.estimator is pathwise"]),
        (DISTILL, {"opd": {"adv_clip": 2, "estimator": "score"}}, []),
        (DISTILL, {"anchor": {"beta": 0, "every": 3}}, ["anchor.every: has no effect, because anchor.beta is 0"]),
        (DISTILL, {"sampling": {"kernel": "ode"}}, []),
        (DISTILL, {"sampling": {"kernel": "ode", "eta": 0.3}}, ["sampling.eta: has no effect"]),
        (DISTILL, {"sampling": {"eta": 0, "window": {"size": 2}}}, ["sampling.window: has no effect"]),
        (DISTILL, {"sampling": {"eta": 0}, "opd": {"step_weight": "kl_no_dt"}}, ["opd.step_weight: has no effect"]),
        (DISTILL, {"routing": {"ocr": {"ref": "base"}}}, ["every teacher is base, which the policy starts from"]),
        (DISTILL, {"routing": {"ocr": {"ref": "base", "base": "sd3.5-large"}}}, []),
        (
            DISTILL,
            {"routing": {"ocr": {"ref": "base"}}, "sampling": {"kernel": "ode"}, "opd": {"teacher_substeps": 2}},
            [],
        ),
        (DISTILL, {"opd": {"teacher_substeps": 2}}, ["opd.teacher_substeps 2: the average velocity is that of steps"]),
        (DISTILL, {"routing": {"ocr": {"ref": "a"}}, "adapter": {"init": "a"}}, ["every teacher is a, which"]),
        (
            DISTILL,
            {"routing": {"ocr": {"ref": "base"}}, "anchor": {"ref": "a"}},
            ["every teacher is base, which the policy starts from, at the same guidance: they teach nothing"],
        ),
        (DISTILL, {"routing": {"ocr": {"ref": "a"}}, "adapter": {"init": "b"}}, []),
        (COLDSTART, {"teachers": {"ocr": {"ref": "base"}}}, []),
    ],
)
def test_settings_without_effect_are_remarked_on(data, sections, expected):
    results = remarks(recipes.build({**data, **sections}))
    assert len(results) == len(expected), results
    assert all(result.startswith(remark) for result, remark in zip(results, expected, strict=True)), results


@pytest.mark.parametrize(
    ("data", "sampling", "opd", "warned"),
    [
        (DISTILL, {"kernel": "cps"}, "kl", True),
        (DISTILL, {"kernel": "cps"}, "kl_no_dt", True),
        (DISTILL, {"kernel": "cps"}, "velocity", False),
        (DISTILL, {"kernel": "cps", "steps": 2}, "kl", False),
        (DISTILL, {"kernel": "cps", "eta": 0}, "kl", False),
        (DISTILL, {**EIGHT, "window": {"size": 3, "start_max": 3}}, "kl", False),
        (DISTILL, {**EIGHT, "window": {"size": 3, "start_max": 4}}, "kl", True),
        (DISTILL, {**EIGHT, "window": LAST}, "kl", False),
        (TEACHER, {"kernel": "cps"}, None, True),
        (TEACHER, {"kernel": "flow_sde"}, None, False),
        (COLDSTART, {"kernel": "cps"}, None, False),
    ],
)
def test_nearly_all_the_weight_on_one_step_is_remarked_on(data, sampling, opd, warned):
    recipe = recipes.build({**data, "sampling": sampling, **({"opd": {"step_weight": opd}} if opd else {})})
    results = [*remarks(recipe), *check_step_weight(recipe, recipe)]
    assert sum("nearly all the weight" in remark for remark in results) == warned


def test_a_distillation_of_one_step_is_refused_unless_it_is_resumed():
    recipe = recipes.build({**DISTILL, "sampling": {"kernel": "cps"}, "opd": {"step_weight": "kl_no_dt"}})
    with pytest.raises(RecipeError, match=r"step 9 of 10 draws hardly any noise.*set opd.step_weight to velocity"):
        check_step_weight(recipe)
    check_step_weight(recipe, recipe)
    check_step_weight(recipes.build({**TEACHER, "sampling": {"kernel": "cps"}}))


@pytest.mark.parametrize(
    ("data", "sections", "field"),
    [
        (TEACHER, {"sampling": {"guidance": 0.0}}, "sampling.guidance 0"),
        (TEACHER, {"sampling": {"guidance": 0.5}}, "sampling.guidance 0.5"),
        (COLDSTART, {"teachers": {"ocr": {"ref": "base", "guidance": 0.2}}}, "teachers.ocr.guidance 0.2"),
        (DISTILL, {"routing": {"ocr": {"ref": "base", "guidance": 0}}}, "routing.ocr.guidance 0"),
        (DISTILL, {"anchor": {"guidance": 0.9}}, "anchor.guidance 0.9"),
        (EVAL, {"eval": {"guidance": 0}}, "eval.guidance 0"),
        ({"stage": "push", "run": "r"}, {"push": {"verify_guidance": 0}}, "push.verify_guidance 0"),
        (
            DISTILL,
            {"routing": {"geneval": [{"ref": "a"}, {"ref": "b", "guidance": 0.5}]}},
            "routing.geneval.1.guidance 0.5",
        ),
    ],
)
def test_guidance_under_1_is_refused_where_it_is_classifier_free(data, sections, field):
    recipe = recipes.build({**data, **sections})
    with pytest.raises(RecipeError, match=rf"^{re.escape(field)}: .* set it to 1, which is no guidance$"):
        check_guidance(recipe)
    check_guidance(recipe, recorded=recipe)
    embedded = recipes.build({**data, **sections, "model": FLUX})
    check_guidance(embedded)
    with pytest.raises(RecipeError):
        check_guidance(recipe, recorded=recipes.build(data))


def test_groups_of_one_are_refused_in_grpo():
    with pytest.raises(RecipeError, match=r"train\.group_size 1: a teacher compares the pictures"):
        remarks(recipes.build({**TEACHER, "train": {"group_size": 1}}))
    assert remarks(recipes.build({**DISTILL, "train": {"group_size": 1}})) == []


def test_a_dry_run_and_the_validation_of_a_recipe_have_the_same_checks(flowopd, tmp_path):
    train = ("--set", "train.group_size=1", "--set", "sampling.guidance=0.5")
    code, _, err = flowopd("teacher", "--reward", "ocr", "--dry-run", *train)
    assert (code, "a teacher compares the pictures" in err) == (2, True)
    code, _, err = flowopd("teacher", "--reward", "ocr", "--dry-run", *train[2:])
    assert code == 2
    assert "sampling.guidance 0.5: classifier-free guidance under 1" in err
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**DISTILL, "sampling": {"kernel": "cps"}}))
    code, out, _ = flowopd("recipes", "validate", path)
    assert (code, out.count("nearly all the weight")) == (3, 1)
    path.write_text(json.dumps({**TEACHER, "train": {"group_size": 1}, "sampling": {"guidance": 0.5}}))
    code, out, _ = flowopd("recipes", "validate", path)
    assert code == 3
    assert "a teacher compares the pictures" in out
    assert "sampling.guidance 0.5" in out


def test_guidance_under_1_follows_the_family_of_a_teachers_own_base():
    own = {"ref": "base", "base": "sd3.5-large", "guidance": 0.5}
    check_guidance(recipes.build({**DISTILL, "routing": {"ocr": {**own, "family": "flux"}}}))
    beyond = {**DISTILL, "routing": {"ocr": {**own, "family": "flux"}}, "opd": {"extrapolate": 1.5}}
    with pytest.raises(RecipeError, match=r"routing\.ocr\.guidance 0\.5"):  # the student's base has it too
        check_guidance(recipes.build(beyond))
    student = {"model": {"family": "flux"}, "sampling": {"guidance": 0.5}}
    with pytest.raises(RecipeError, match=r"routing\.ocr\.guidance 0\.5"):
        check_guidance(
            recipes.build({**DISTILL, **student, "routing": {"ocr": {**own, "guidance": None, "family": "sd3"}}})
        )
    student = {"model": {"family": "flux"}}
    with pytest.raises(RecipeError, match=r"routing\.ocr\.guidance 0\.5"):
        check_guidance(recipes.build({**DISTILL, **student, "routing": {"ocr": {**own, "family": "sd3"}}}))
