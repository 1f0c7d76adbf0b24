"""The flags of the stages: what they make of the recipe, and which mistakes they refuse."""

import json
from pathlib import Path

import pytest
import yaml
from support.tiny_adapters import pair, write_adapter

from flowopd_cli.runs.run import RunDir

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def resolved(flowopd):
    """Resolves a command line to its recipe, as JSON."""

    def resolve(*argv):
        code, out, err = flowopd(*argv, "--dry-run", "--json")
        assert code == 0, err
        return json.loads(out)["recipe"]

    return resolve


def test_rewards_on_the_command_line(resolved):
    [reward] = resolved("teacher", "--reward", "geneval=0.25")["rewards"]
    assert (reward["weight"], reward["options"]) == (0.25, {"threshold": 0.25})
    mixed = resolved("teacher", "--reward", "geneval", "--reward", "ocr=2")["rewards"]
    weights = [(reward["name"], reward["weight"], reward["task"]) for reward in mixed]
    assert weights == [("toy-geneval", 0.5, "geneval"), ("toy-ocr", 2.0, "ocr")]
    Path("mine.py").write_text("def bright(images, prompts): return images.mean((1, 2, 3))\n", encoding="utf-8")
    own = resolved("teacher", "--reward", "mine:bright", "--prompts", "toy:ocr,split=validation,limit=5")
    assert own["rewards"][0]["name"] == "mine:bright"
    assert (own["prompts"][0]["limit"], own["prompts"][0]["split"]) == (5, "validation")


def test_distill_flags_reach_the_recipe(resolved, trained):
    trained("a", "b", "c")
    argv = ["--init", "a", "--teacher", "geneval=a", "--teacher", "ocr=b,guidance=2", "--anchor", "c,guidance=3"]
    recipe = resolved("distill", *argv, "--estimator", "score", "--processes", "1")
    assert recipe["adapter"]["init"] == "a"
    ocr = recipe["routing"]["ocr"]
    assert (ocr["ref"], ocr["guidance"], ocr["base"]) == ("b", 2.0, None)
    assert (recipe["anchor"]["ref"], recipe["anchor"]["guidance"]) == ("c", 3.0)
    assert recipe["opd"]["estimator"] == "score"


@pytest.mark.parametrize(("flag", "guidance"), [("1.5", 1.5), ("1,1.5,2", [1, 1.5, 2]), ("2,2", 2)])
def test_an_evaluation_takes_one_guidance_or_several(resolved, flag, guidance):
    assert resolved("eval", "--guidance", flag)["eval"]["guidance"] == guidance


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--guidance", "1,x"], "--guidance 1,x: write numbers with commas between them"),
        (["--guidance", "0.5,1"], "eval.guidance 0.5: classifier-free"),
        (["--set", "eval.guidance=[]"], "eval.guidance: [] should be a number of at least 0, or a list of several"),
        (["--set", "eval.guidance=[1, -1]"], "eval.guidance: [1, -1] should be a number of at least 0"),
        (["--set", "eval.guidance=[1, true]"], "eval.guidance: Input should be a number, not [1, true]"),
        (["--set", "eval.guidance=much"], "eval.guidance: 'much' should be a number of at least 0"),
    ],
)
def test_a_guidance_of_an_evaluation_that_is_no_number_is_refused(flowopd, argv, message):
    code, _, err = flowopd("eval", *argv, "--dry-run")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("flag", "guidance"), [("ocr=a", 3.0), ("ocr=a,guidance=2", 2.0)])
def test_teacher_flags_replace_the_teachers_but_not_the_settings_of_their_tasks(resolved, trained, flag, guidance):
    trained("a")
    routing = {"ocr": {"ref": "old", "guidance": 3}, "geneval": {"ref": "old"}}
    recipe = {"stage": "distill", "model": {"pretrained": "toy"}, "prompts": [{"source": "toy:ocr"}]}
    Path("mine.yaml").write_text(yaml.safe_dump({**recipe, "anchor": {"beta": 0}, "routing": routing}))
    routing = resolved("distill", "--recipe", "mine.yaml", "--teacher", flag)["routing"]
    assert {task: (spec["ref"], spec["guidance"]) for task, spec in routing.items()} == {"ocr": ("a", guidance)}


def test_merge_takes_the_base_from_its_adapters(resolved, trained):
    trained("a", "b")
    recipe = resolved("merge", "a", "b", "--weights", "1,0.5", "--method", "ties")
    assert (recipe["model"]["pretrained"], recipe["model"]["resolution"]) == ("toy", 32)
    assert recipe["merge"]["weights"] == [1.0, 0.5]


def test_eval_flags_reach_the_recipe(flowopd, stage, trained):
    trained("a")
    calls = stage("eval")
    argv = ["--suite", "geneval,ocr", "--adapter", "a", "--images-per-prompt", "2", "--split", "validation"]
    assert flowopd("eval", *argv, "--seed", "5", "--batch", "3", "--limit", "4", "--quiet")[0] == 0
    spec = calls[0].recipe.eval
    assert (spec.suites, spec.images, spec.split) == (("toy-geneval", "toy-ocr"), 2, "validation")
    assert (spec.seed, spec.batch, spec.limit) == (5, 3, 4)


@pytest.mark.parametrize(("flag", "private"), [("--private", True), ("--public", False), ("--quiet", None)])
def test_push_takes_branch_message_and_visibility(flowopd, stage, trained, flag, private):
    trained("a")
    calls = stage("push")
    argv = ("--repo", "me/m", "--revision", "v2/try", "--message", "better", flag, "--out", "p")
    assert flowopd("push", "a", *argv)[0] == 0
    spec = calls[0].recipe.push
    assert (spec.revision, spec.message, spec.private) == ("v2/try", "better", private)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "--repo OWNER/NAME"),
        ("--repo m", "--repo m: is not a Hub repository: write it as OWNER/NAME"),
        ("--repo https://huggingface.co/me/m", "write it as OWNER/NAME"),
        ("--repo me/m --revision a..b", "--revision a..b: is not a branch name"),
        (f"--repo me/m --revision {'a' * 40}", "is not a branch name; a push can only go to a branch"),
        ("--repo me/m --eval none", "none: no such directory"),
        ("--repo me/m --message=", "push.message"),
    ],
)
def test_a_push_without_a_valid_place_is_refused_before_there_is_a_run(flowopd, stage, trained, argv, words):
    trained("a")
    calls = stage("push")
    code, out, err = flowopd("push", "a", *argv.split(), "--out", "p")
    assert (code, out, err.count("\n"), calls) == (2, "", 1, [])
    assert words in err
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("teacher", "teacher needs a reward"),
        ("teacher --reward genevl", "did you mean 'geneval'"),
        ("teacher --reward geneval=much", "'much' is not a number"),
        ("teacher --reward geneval,tsak=ocr", "did you mean 'task'"),
        ("teacher --reward geneval --prompts toy:genevl", "did you mean 'toy:geneval'"),
        ("teacher --reward geneval --prompts none.jsonl", "none.jsonl: no such file"),
        ("teacher --reward geneval,task=geneval --prompts toy:all", "prompts of task 'ocr' have no reward"),
        ("teacher --reward geneval --base tyo --recipe toy/grpo-mix", "did you mean 'toy'"),
        ("teacher --reward geneval --base recipes --recipe toy/grpo-mix", "no model_index.json"),
        ("teacher --reward geneval --base me/model", "teacher needs prompts"),
        ("teacher --recipe toy/destill", "did you mean 'toy/distill'"),
        ("teacher --recipe toy/distill", "is a distill recipe, but the command is teacher"),
        ("merge", "merge needs the runs to merge"),
        ("merge a b --weights 1,x", "write numbers with commas"),
        ("merge none", "adapters.0: none: no such run directory"),
        (
            "merge me/a me/b",
            "adapters.0: me/a: no such run directory, adapter folder or file; an adapter on the Hub is "
            "written hub:me/a",
        ),
        ("merge base base", "base is not an adapter"),
        ("distill --teacher geneval=base", "prompts of task 'ocr' have no teacher: add --teacher ocr=REF"),
        ("distill --teacher geneval", "write it as TASK=REF"),
        ("distill --teacher ocr=base --teacher ocr=base", "named twice"),
        ("teacher --reward geneval --prompts toy:all,task=foo", "no prompt in it of task 'foo'; it has geneval, ocr"),
        ("teacher --reward geneval --out /dev/null/x", "/dev/null/x: cannot be written (Not a directory)"),
        ("push none", "none: no such directory"),
        ("push recipes", "recipes: not a run directory"),
        ("teacher --resume none", "none: no such directory"),
        ("teacher --resume none --seed 3", "leave out --seed"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flowopd, argv, words):
    code, out, err = flowopd(*argv.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("flowopd: error: ")
    assert words in err


@pytest.mark.parametrize(
    ("argv", "read"),
    [
        ("merge a b --out a", "a"),
        ("merge a b --out b/../b", "b"),
        ("merge a/adapter b --out a", "a/adapter"),
        ("distill --init a --out a", "a"),
        ("distill --teacher geneval=a --teacher ocr=base --out a", "a"),
        ("distill --anchor a --out a", "a"),
        ("coldstart --teacher geneval=a --teacher ocr=b --set prompts=[{source:\u00a0toy:all}] --out b", "b"),
        ("teacher --reward geneval --set adapter.init=a --out a", "a"),
        ("eval --adapter a --out a", "a"),
        ("push a --repo me/m --out a", "a"),
        ("push a --repo me/m --eval b --out b", "b"),
    ],
)
def test_force_never_deletes_what_the_command_reads(flowopd, trained, argv, read):
    files = [trained(name) / "adapter/adapter_config.json" for name in "ab"]
    code, _, err = flowopd(*(part.replace("\u00a0", " ") for part in argv.split(" ")), "--force")
    assert code == 2
    assert f"{read} is an input of this command; give --out another name" in err
    assert all(path.is_file() for path in files)


def test_a_start_from_an_adapter_records_the_shape_of_that_adapter(flowopd, stage, trained):
    config = {"r": 16, "lora_alpha": 16.0, "target_modules": ["attn.to_q"]}
    write_adapter(trained("a") / "adapter", pair(rank=16), **config)
    calls = stage("distill")
    code, _, err = flowopd("distill", "--init", "a", "--out", "r")
    assert code == 0
    assert "note: adapter.rank is 16, as in a" in err
    written = RunDir.open("r").recipe().adapter
    assert (written.rank, written.alpha, written.targets) == (16, 16, ("attn.to_q",))
    assert calls[0].recipe.adapter == written
    code, _, err = flowopd("distill", "--init", "a", "--set", "adapter.rank=32", "--out", "s")
    assert code == 2
    assert "starts from a, whose rank is 16" in err


def test_a_rank_is_refused_or_dropped_where_the_method_has_none(flowopd, resolved, trained):
    trained("a", "b")
    code, _, err = flowopd("merge", "a", "b", "--dry-run", "--method", "exact", "--rank", "4")
    assert code == 2
    assert "rank 4 has no meaning for method exact" in err
    assert flowopd("merge", "a", "b", "--set", "merge.method=factor_average", "--set", "merge.rank=4")[0] == 2
    assert resolved("merge", "a", "b", "--method", "exact")["merge"]["rank"] is None
    assert resolved("merge", "a", "b", "--rank", "4")["merge"]["rank"] == 4
    recipe = {"stage": "merge", "model": {"pretrained": "toy"}, "merge": {"rank": 32}, "adapters": ["x"]}
    Path("m.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    merge = resolved("merge", "a", "b", "--recipe", "m.yaml", "--method", "exact")["merge"]
    assert (merge["method"], merge["rank"]) == ("exact", None)


def test_an_absent_adapter_is_noted_with_the_reference_to_the_hub(flowopd):
    for ref, hint in (("me/a", "; an adapter on the Hub is written hub:me/a"), ("runs/a", "")):
        code, _, err = flowopd("distill", "--init", ref, "--dry-run")
        assert code == 0
        assert f"note: adapter.init: {ref}: is not there yet{hint}\n" in err


def test_a_teacher_without_prompts_is_noted(flowopd):
    argv = ["distill", "--set", "prompts=[{source: 'toy:ocr'}]", "--dry-run"]
    code, out, err = flowopd(*argv)
    assert code == 0
    assert "note: teacher 'geneval' is loaded, but no prompt has its task" in err
    assert flowopd(*argv, "--quiet")[1:] == (out, "")
