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
DISTILL = {
    "stage": "distill",
    "model": TOY,
    "prompts": TEACHER["prompts"],
    "routing": {"ocr": {"ref": "base", "guidance": 2.0}},
}


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
    with pytest.raises(RewardError, match=r"'other' have no reward \(rewards are for ocr\)"):
        check(teacher(prompts=[{"source": source, "task": "ocr"}], rewards=rewards))


def test_rows_without_a_weight_of_their_teachers_are_refused_by_their_place(tmp_path):
    route = [{"ref": "base", "weight": "meta:share"}, {"ref": "base", "guidance": 2.0}]
    source = jsonl(tmp_path / "o.jsonl", {"prompt": "x", "share": 1}, {"prompt": "y"})
    recipe = {**DISTILL, "routing": {"ocr": route}, "prompts": [{"source": source, "task": "ocr"}]}
    with pytest.raises(PromptError, match=r"o\.jsonl:2' of task 'ocr': the metadata entry share is missing"):
        check(recipes.build(recipe))
    check(recipes.build({**recipe, "prompts": [{"source": source, "task": "ocr", "limit": 1}]}))


@pytest.mark.parametrize(
    ("name", "content", "task", "words"),
    [
        ("a.txt", b"", None, "no prompt in it"),
        ("b.jsonl", b'{"prompt": "x"}', None, "b.jsonl:1: has no"),
        ("o.jsonl", b'{"prompt": "caf\xe9"}', "ocr", r"o\.jsonl:1: not UTF-8 text \(byte 15 of the line\)"),
    ],
)
def test_files_without_usable_prompts(tmp_path, name, content, task, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=words):
        check(teacher(prompts=[{"source": str(tmp_path / name), "task": task}]))


def test_prompts_that_a_reward_could_not_score_are_named_before_anything_is_loaded(tmp_path):
    source = jsonl(tmp_path / "o.jsonl", {"prompt": 'a "word"'}, {"prompt": "x", "target": "y"}, {"prompt": "nothing"})
    prompts = [{"source": source, "task": "ocr"}]
    with pytest.raises(PromptError, match=r"o\.jsonl:3: no text in double quotes"):
        check(teacher(prompts=prompts))
    assert check(teacher(prompts=[{**prompts[0], "limit": 2}])) == []
    judged = {"rewards": [{"name": "toy-geneval", "task": "a"}, {"name": "toy-ocr", "task": "b"}]}
    mixed = jsonl(tmp_path / "m.jsonl", {"prompt": 'a "word"', "task": "b"}, {"prompt": "x", "task": "a"})
    with pytest.raises(PromptError, match=r"m\.jsonl:2: the reward toy-geneval needs metadata with clauses"):
        check(teacher(prompts=[{"source": mixed}], **judged))
    unlogged = {**DISTILL, "prompts": prompts, "rewards": [{"name": "toy-ocr"}]}
    assert check(recipes.build(unlogged)) == ["rewards: has no effect, because opd.log_rewards_every is 0"]
    with pytest.raises(PromptError, match="no text in double quotes"):
        check(recipes.build(unlogged, overrides=["opd.log_rewards_every=1"]))


def test_prompts_of_a_watch_are_checked_by_the_rewards_that_score_them(tmp_path):
    plain = jsonl(tmp_path / "p.jsonl", {"prompt": "nothing", "task": "x"})
    quality, ocr = [{"name": "toy-quality"}], [{"name": "toy-ocr"}]
    watched = {"prompts": [{"source": plain}], "rewards": quality}
    often = {"watch_every": 2}
    assert check(teacher(watch=watched, train=often)) == []
    with pytest.raises(PromptError, match=r"p\.jsonl:1: no text in double quotes"):
        check(teacher(watch={"prompts": watched["prompts"]}, train=often))
    trained = {"prompts": [{"source": plain}], "rewards": quality}
    with pytest.raises(PromptError, match=r"p\.jsonl:1: no text in double quotes"):
        check(teacher(**trained, watch={"rewards": ocr}, train=often))
    off = check(teacher(**trained, watch={"rewards": ocr}))
    assert off == ["watch.rewards: has no effect, because train.watch_every is 0"]


def test_the_toys_suites_are_refused_by_their_short_names_elsewhere(tmp_path):
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")

    def complete(model, **spec):
        return complete_names(recipes.build({"stage": "eval", "model": model, "eval": spec}))

    elsewhere = {"pretrained": str(tmp_path)}
    with pytest.raises(RecipeError, match=r"no suite 'quality', did you mean 'toy-quality'"):
        check(complete(elsewhere, suites=["quality"]))
    assert complete(elsewhere).eval.suites == ("geneval", "ocr")
    check(complete(elsewhere, suites=["toy-ocr"]))
    check(complete(TOY))
    assert complete(TOY).eval.suites == ("toy-geneval", "toy-ocr")


def test_missing_packages_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"pip install 'flowopd\[track\]'"):
        check(teacher(train={"track": "tensorboard"}))
    module = types.ModuleType("tensorboard")
    module.__spec__ = types.SimpleNamespace(name="tensorboard", origin="tensorboard/__init__.py")
    monkeypatch.setitem(sys.modules, "tensorboard", module)
    assert check(teacher(train={"track": "tensorboard"})) == []
    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingDependency, match=r"pip install 'flowopd\[int8\]'"):
        check(teacher(train={"optimizer": "adamw8bit"}))


def test_rewards_of_a_task_without_prompts_are_remarked_on():
    rewards = [*TEACHER["rewards"], {"name": "toy-quality", "task": "quality"}]
    assert check(teacher(rewards=rewards)) == ["reward toy-quality scores nothing: no prompt has its task 'quality'"]


def test_prompts_that_are_there_twice_and_processes_of_a_launcher_are_remarked_on(tmp_path, monkeypatch):
    path = tmp_path / "o.txt"
    path.write_text('a "b"\n\nc "d"\na "b"\na "b"\n', encoding="utf-8")
    (remark,) = check(teacher(prompts=[{"source": str(path), "task": "ocr"}]))
    assert "o.txt: 1 of 2 prompts are there more than once, the first in line 1" in remark
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "over 3 processes" in check(teacher(train={"groups": 4}))[0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "ocr",
            {"drop_scor": 0.1},
            r"reward ocr: no option 'drop_scor', did you mean 'drop_score'\?; options: reader, ",
        ),
        ("ocr", {"drop_score": "yes"}, "reward ocr: option drop_score: Input should be a valid number, not 'yes'"),
        ("ocr", {"drop_score": True}, "reward ocr: option drop_score: Input should be a number, not true"),
        (
            "toy-geneval",
            {"score": "oficial"},
            "reward toy-geneval: option score: Input should be 'training', 'official'",
        ),
        ("deqa", {"timeout": "soon"}, "reward deqa: option timeout: Input should be a valid number, not 'soon'"),
        ("remote:http://127.0.0.1:9", {"gain": 2}, "no option 'gain'; .*; the reward's own are set where it is served"),
        ("dpg-bench", {"start": "x"}, "no option 'start'; .* backoff; the reward's own are set where it is served"),
        ("geneval", {"detector": "x"}, "reward geneval: no option 'detector'"),
        (
            "ocr",
            {"reader": "tesseract"},
            "reward ocr: option reader: Input should be 'auto', 'paddleocr', 'rapidocr' or",
        ),
        ("clipscore", {"variant": "ddpo"}, "reward clipscore: option variant: Input should be 't2i-compbench', "),
        ("toy-quality", {"x": 1}, "reward toy-quality: no option 'x'; options: none"),
        (
            "my_gain:score",
            {"gain": "low"},
            "reward my_gain:score: option gain: Input should be a valid number, not 'low'",
        ),
    ],
)
def test_options_of_rewards_are_refused_before_anything_is_loaded(monkeypatch, tmp_path, name, options, words):
    (tmp_path / "my_gain.py").write_text("def score(images, prompts, gain: float = 1.0, free=None): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = teacher(rewards=[{"name": name, "options": options}])
    with pytest.raises(RewardError, match=words):
        check(recipe, dry_run=True)
    texts = [str(finding) for finding in checks.findings(recipe) if finding.state == "fail"]
    assert texts == [] if name == "my_gain:score" else len(texts) == 1  # code is not imported without consent


def test_options_in_their_types_are_accepted(monkeypatch, tmp_path):
    (tmp_path / "my_gain.py").write_text("def score(images, prompts, gain: float = 1.0, free=None): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, options in (
        ("ocr", {"drop_score": 1e-1, "threads": 2.0}),
        ("deqa", {"timeout": 1, "on_error": "skip"}),
        ("my_gain:score", {"gain": 2, "free": "anything"}),
    ):
        check(teacher(rewards=[{"name": name, "options": options}]), dry_run=True)


@pytest.mark.parametrize(
    ("suite", "options", "words"),
    [
        ("ocr", {"drop_scor": 0.1}, "reward ocr: no option 'drop_scor', did you mean 'drop_score'"),
        ("ocr", {"drop_score": "yes"}, "reward ocr: option drop_score: .* not 'yes'"),
        ("geneval", {"prompts": 3}, r"eval\.options\.geneval: option prompts: Input should be a valid string, not 3"),
        ("drawbench", {"scorer": ["deqa"]}, r"eval\.options\.drawbench: no option 'scorer', did you mean 'scorers'"),
        ("drawbench", {"options": {"dqa": {}}}, "drawbench: no options of 'dqa', did you mean 'deqa'"),
        ("average", {"genevl": {}}, "average: no options of 'genevl', did you mean 'geneval'"),
        ("average", {"ocr": 3}, r"eval\.options\.average: option ocr: Input should be a valid dictionary, not 3"),
        ("t2i-compbench", {"detecter": "owlv2"}, "t2i-compbench: no option 'detecter', did you mean 'detector'"),
        ("t2i-compbench", {"batch": "many"}, "option batch: Input should be a valid integer, not 'many'"),
    ],
)
def test_options_of_suites_are_refused_before_anything_is_loaded(suite, options, words):
    recipe = recipes.build({"stage": "eval", "eval": {"suites": [suite], "options": {suite: options}}})
    with pytest.raises((RecipeError, RewardError), match=words):
        check(recipe, dry_run=True)
    assert [finding.state for finding in checks.findings(recipe)] == ["fail"]


def test_pictures_and_scores_that_are_not_there_are_noted_by_a_dry_run(tmp_path):
    files = {"pictures": str(tmp_path), "pictures_csv": str(tmp_path / "list.csv")}
    recipe = recipes.build({"stage": "eval", "eval": {"suites": ["pickscore"], **files}})
    assert check(recipe, dry_run=True) == [f"eval.pictures_csv: {tmp_path / 'list.csv'}: is not there yet"]
    assert check(recipe) == []
