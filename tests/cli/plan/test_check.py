"""What is refused before anything is loaded, and what is only remarked on."""

import json
import sys
import types

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan import check as checks
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.resolve import complete_names
from flowopd_cli.errors import MissingDependency, PromptError, RecipeError, RewardError

TOY = {"pretrained": "toy", "resolution": None}
TEACHER = {"stage": "teacher", "model": TOY, "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}


def teacher(**sections):
    return recipes.build({**TEACHER, **sections})


def jsonl(path, *rows, bom=""):
    path.write_text(bom + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_a_rows_own_task_wins_over_the_flags(tmp_path):
    source = jsonl(tmp_path / "o.jsonl", {"prompt": "x", "task": "other"}, {"prompt": "y"}, bom="\ufeff")

    def tasks(**options):
        spec = recipes.PromptSpec(source=source, **options)
        return checks.tasks_of(spec, checks.rows_of(spec))

    assert tasks(task="ocr") == {"other", "ocr"}
    assert tasks(task="ocr", limit=1) == {"other"}
    rewards = [{"name": "toy-ocr", "task": "ocr"}]
    recipe = teacher(prompts=[{"source": source, "task": "ocr"}], rewards=rewards)
    with pytest.raises(RewardError, match=r"'other' have no reward \(rewards are for ocr\)"):
        check(recipe)


def test_a_prompt_file_that_is_no_text(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(PromptError, match=r"o\.jsonl:1: not UTF-8 text \(byte 15 of the line\)"):
        check(teacher(prompts=[{"source": str(path), "task": "ocr"}]))


def test_prompts_that_a_reward_could_not_score_are_named_before_anything_is_loaded(tmp_path):
    source = jsonl(tmp_path / "o.jsonl", {"prompt": 'a "word"'}, {"prompt": "x", "target": "y"}, {"prompt": "nothing"})
    with pytest.raises(PromptError, match=r"o\.jsonl:3: no text in double quotes for the reward toy-ocr"):
        check(teacher(prompts=[{"source": source, "task": "ocr"}]))
    assert check(teacher(prompts=[{"source": source, "task": "ocr", "limit": 2}])) == []
    judged = {"rewards": [{"name": "toy-geneval", "task": "a"}, {"name": "toy-ocr", "task": "b"}]}
    mixed = jsonl(tmp_path / "m.jsonl", {"prompt": 'a "word"', "task": "b"}, {"prompt": "x", "task": "a"})
    with pytest.raises(PromptError, match=r"m\.jsonl:2: the reward toy-geneval needs metadata with clauses"):
        check(teacher(prompts=[{"source": mixed}], **judged))


def test_rewards_that_are_not_asked_refuse_nothing(tmp_path):
    source = jsonl(tmp_path / "o.jsonl", {"prompt": "nothing quoted"})
    data = {"stage": "distill", "model": TOY, "prompts": [{"source": source, "task": "ocr"}]}
    data |= {"routing": {"ocr": {"ref": "base"}}, "rewards": [{"name": "toy-ocr"}]}
    assert check(recipes.build(data)) == []
    with pytest.raises(PromptError, match="no text in double quotes"):
        check(recipes.build(data, overrides=["opd.log_rewards_every=1"]))


def test_prompts_that_are_there_twice_are_remarked_on(tmp_path):
    path = tmp_path / "o.txt"
    path.write_text('a "b"\n\nc "d"\na "b"\na "b"\n', encoding="utf-8")
    (remark,) = check(teacher(prompts=[{"source": str(path), "task": "ocr"}]))
    assert "o.txt: 1 of 2 prompts are there more than once, the first in line 1" in remark


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "no prompt in it"),
        ("a.txt", " \n\n", "no prompt in it"),
        ("b.jsonl", '{"prompt": "x"}', "b.jsonl:1: has no"),
    ],
)
def test_files_without_prompts_or_tasks(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=words):
        check(teacher(prompts=[{"source": str(tmp_path / name)}]))


def test_the_toys_suites_are_refused_by_their_short_names_elsewhere(tmp_path):
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    there = {"stage": "eval", "model": {"pretrained": str(tmp_path)}}
    with pytest.raises(RecipeError, match=r"no suite 'quality', did you mean 'toy-quality'"):
        check(complete_names(recipes.build({**there, "eval": {"suites": ["quality"]}})))
    assert complete_names(recipes.build(there)).eval.suites == ("geneval", "ocr")
    check(complete_names(recipes.build({**there, "eval": {"suites": ["toy-ocr"]}})))
    here = complete_names(recipes.build({"stage": "eval", "model": TOY}))
    check(here)
    assert here.eval.suites == ("toy-geneval", "toy-ocr")


def test_a_window_over_the_last_step_is_remarked_on():
    def remarks(**window):
        return check(teacher(sampling={"steps": 8, "window": window}))

    assert remarks(size=2, start_min=6, start_max=6) == [
        "sampling.window holds the last step, which draws no noise and is not trained"
    ]
    assert remarks(size=2, start_max=5) == []


def test_curves_need_tensorboard(monkeypatch):
    recipe = teacher(train={"track": "tensorboard"})
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"pip install 'flowopd\[track\]'"):
        check(recipe)
    found = types.ModuleType("tensorboard")
    found.__spec__ = types.SimpleNamespace(name="tensorboard", origin="tensorboard/__init__.py")
    monkeypatch.setitem(sys.modules, "tensorboard", found)
    assert check(recipe) == []


def test_an_optimizer_whose_package_is_missing_is_refused(monkeypatch):
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingDependency, match=r"pip install 'flowopd\[int8\]'"):
        check(teacher(train={"optimizer": "adamw8bit"}))


@pytest.mark.parametrize(("groups", "processes", "said"), [(8, 4, []), (8, 1, []), (3, 2, ["2"]), (1, 4, ["1"])])
def test_processes_that_wait_for_others_are_remarked_on(groups, processes, said):
    found = check(teacher(train={"groups": groups, "processes": processes}))
    assert ["groups stay whole" in note for note in found] == [True for _ in said]
    assert all(f"train.groups {groups} over {processes} processes" in note for note in found)


def test_copies_that_a_launcher_started_count(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "over 3 processes" in check(teacher(train={"groups": 4}))[0]


def test_resampling_without_a_use_is_remarked_on():
    distill = {"stage": "distill", "model": TOY, "prompts": TEACHER["prompts"], "routing": {"ocr": {"ref": "base"}}}
    assert check(teacher(train={"resample_flat": 4})) == []
    found = check(recipes.build({**distill, "train": {"resample_flat": 4}}))
    assert found == ["train.resample_flat has no effect here: distill has no use for a group's spread"]
