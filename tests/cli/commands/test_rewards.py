"""``flowopd rewards`` through the command line's ``main``, and a reward served to another process."""

import json
import signal
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from support.workers import started

from flowopd_cli.rewards import catalog as _rewards
from flowopd_cli.rewards.remote import isolated

MODULE = """
import torch
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import MissingDependency, PromptError
from flowopd_cli.rewards.base import Reward, RewardInfo


def red(images, prompts, gain=1.0):
    print("a library that prints")
    return [gain * float(image[0].mean()) if image.shape[-1] > 4 else None for image in images]


class Blue(Reward):
    info = RewardInfo("blue", "none", 0.0, 1.0, license="none", extra="ocr", exact=False)

    def check(self, prompts):
        if any("cold" not in prompt.text for prompt in prompts):
            raise PromptError("not cold")

    def __call__(self, images, prompts):
        total = images[:, 2].mean(dim=(1, 2))
        return RewardResult(total, {"half": total / 2}, torch.ones(len(prompts), dtype=torch.bool))


def factory() -> Blue:
    return Blue()


class Absent:
    def __init__(self):
        raise MissingDependency("nothing", extra="none")
"""


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    (tmp_path / "my_scores.py").write_text(MODULE)
    for name, size, color in (("a", 8, (255, 0, 51)), ("b", 16, (51, 0, 0)), ("small", 4, (9, 9, 9))):
        Image.new("RGB", (size, size), color).save(tmp_path / f"{name}.png")
    yield
    sys.modules.pop("my_scores", None)


def test_a_table_of_scores(flowopd):
    code, out, err = flowopd("rewards", "score", "--reward", "my_scores:red", "--prompt", "x", "a.png", "b.png")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["PICTURE", "TOTAL"],
        ["a.png", "1.0000"],
        ["b.png", "0.2000"],
    ]
    assert "a library that prints" in err


def test_scores_as_json_with_options_and_a_prompt_each(flowopd):
    argv = ["--set", "gain=2", "--prompt", "x", "--prompt", "y", "a.png", "b.png", "--json"]
    rows = json.loads(flowopd("rewards", "score", "--reward", "my_scores:red", *argv)[1])
    assert [(row["image"], row["prompt"], row["valid"]) for row in rows] == [("a.png", "x", True), ("b.png", "y", True)]
    assert [row["total"] for row in rows] == pytest.approx([2.0, 0.4])


def test_a_picture_that_cannot_be_scored_says_why(flowopd):
    argv = ["rewards", "score", "--reward", "my_scores:red", "--prompt", "x"]
    out = flowopd(*argv, "a.png", "small.png")[1]
    assert "small.png" in out
    assert "invalid: my_scores:red gave no finite number" in out
    code, out, err = flowopd(*argv, "small.png")
    assert (code, out) == (2, "")
    assert "no picture could be scored: my_scores:red gave no finite number" in err


def test_prompts_from_a_file_with_their_metadata(flowopd, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "cold sea", "task": "t", "tag": "x"}\n')
    out = flowopd("rewards", "score", "--reward", "my_scores:Blue", "--prompts", "p.jsonl", "a.png", "--json")[1]
    assert json.loads(out)[0]["scores"] == {"half": pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--reward my_scores:red a.png", "--prompt TEXT"),
        ("--reward my_scores:red --prompt x --prompt y --prompt z a.png b.png", "3 prompts for 2 pictures"),
        ("--reward my_scores:red --prompt x none.png", "none.png: cannot be read as a picture"),
        ("--reward my_scores:red --prompt x --set grain=1 a.png", "grain"),
        ("--reward my_scores:Blue --prompt x a.png", "not cold"),
        ("--reward my_scores:Absent --prompt x a.png", "pip install 'flowopd[none]'"),
        ("--reward genevl --prompt x a.png", "did you mean 'geneval'"),
        ("--reward remote:nowhere/x --prompt x a.png", "write it as remote:http://HOST:PORT"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flowopd, argv, words):
    code, out, err = flowopd("rewards", "score", *argv.split(" "))
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_the_list(flowopd, monkeypatch):
    rows = {"blue": "my_scores:Blue", "red": "my_scores:red", "gone": "my_scores:gone", "made": "my_scores:factory"}
    rows["deqa"] = "flowopd_cli.rewards.remote.client:DeQAReward"
    monkeypatch.setattr(_rewards.registry.REWARDS, "_table", rows)
    monkeypatch.syspath_prepend(Path.cwd())
    lines = flowopd("rewards", "ls")[1].splitlines()
    assert lines[0].split() == ["NAME", "INSTALLED", "EXACT", "RANGE", "EXTRA", "LICENCE"]
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert cells["blue"][1:] == ["approximate", "0..1", "ocr", "none"]
    assert cells["deqa"][:3] == ["worker", "exact", "0.2..1"]
    assert cells["gone"][0] == "no"
    assert cells["made"][1:] == ["?", "0..1", "ocr"]
    found = {row["name"]: row for row in json.loads(flowopd("rewards", "ls", "--json")[1])}
    assert found["blue"]["high"] == 1.0
    assert "cannot be loaded" in found["gone"]["note"]


def test_what_an_extra_needs(monkeypatch):
    lines = ["torch>=2", 'pytest>=1; extra == "have"', 'no-such-package; extra == "lack"', 'pytest; extra == "lack"']
    monkeypatch.setattr(_rewards.metadata, "requires", lambda name: lines)
    assert _rewards.installed(None) == "yes"
    assert _rewards.installed("have") == "yes"
    assert _rewards.installed("lack") == "no"
    assert _rewards.installed("unheard-of") == "?"
    monkeypatch.setattr(_rewards.metadata, "requires", Mock(side_effect=PackageNotFoundError))
    assert _rewards.installed("have") == "?"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("my_scores:red --host 0.0.0.0", "needs a token"),
        ("my_scores:red --token-file none", "cannot be read"),
        ("genevl", "did you mean 'geneval'"),
        ("none.py", "worker none.py: no such file"),
        ("my_scores:Absent --port 0", "pip install 'flowopd[none]'"),
    ],
)
def test_a_server_that_cannot_start(flowopd, argv, words, monkeypatch):
    monkeypatch.delenv("FLOWOPD_REWARD_TOKEN", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    code, out, err = flowopd("rewards", "serve", *argv.split(" "))
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_a_worker_script_gets_the_flags_but_not_the_token(flowopd, monkeypatch):
    run = Mock(side_effect=SystemExit(0))
    monkeypatch.setenv("MINE", "secret")
    monkeypatch.setattr(isolated, "run", run)
    argv = ["deqa", "--host", "0.0.0.0", "--token-env", "MINE", "--set", "divide=1", "--max-batch", "4"]
    assert flowopd("rewards", "serve", *argv)[0] == 0
    name, path, flags = run.call_args.args
    assert (name, path.name) == ("deqa", "deqa.py")
    assert flags.items() >= {"host": "0.0.0.0", "port": 18086, "token_env": "MINE", "max_batch": 4}.items()
    assert flags["options"] == {"divide": 1}
    assert "secret" not in str(flags)


def test_a_reward_served_scores_as_at_home(flowopd, tmp_path):
    argv = [sys.executable, "-m", "flowopd_cli", "rewards", "serve", "my_scores:red", "--port", "0", "--set", "gain=2"]
    with started(folder=tmp_path, argv=argv) as worker:
        there = ["--reward", f"remote:{worker.url}", "--prompt", "x", "--json"]
        rows = json.loads(flowopd("rewards", "score", *there, "a.png", "b.png", "small.png")[1])
        assert "a library that prints" in worker.log
        worker.process.terminate()
        assert worker.process.wait(40) == 0  # longer than the grace of open connections
    home = ["--reward", "my_scores:red", "--set", "gain=2", "--prompt", "x", "--json"]
    assert rows == json.loads(flowopd("rewards", "score", *home, "a.png", "b.png", "small.png")[1])


def test_the_options_of_a_reward_are_listed(flowopd):
    code, out, _ = flowopd("rewards", "ls", "jpeg_compressibility")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[:2] == [["OPTION", "TYPE", "DEFAULT"], ["quality", "int", "95"]]
    assert lines[2:] == [["variant", "ddpo", "|", "flow_grpo", '"ddpo"']]
    rows = json.loads(flowopd("rewards", "ls", "geneval", "--json")[1])
    assert {"option": "threshold", "type": "float", "required": False, "default": 0.3} in rows
    assert "detector" not in {row["option"] for row in rows}
    rows = json.loads(flowopd("rewards", "ls", "my_scores:red", "--json")[1])
    assert rows == [{"option": "gain", "type": "Any", "required": False, "default": 1.0}]
    code, out, err = flowopd("rewards", "ls", "genevl")
    assert (code, out) == (2, "")
    assert "did you mean 'geneval'" in err


def test_wrong_options_are_refused_before_a_reward_is_served(flowopd):
    code, out, err = flowopd("rewards", "serve", "jpeg_compressibility", "--set", "quality=high")
    assert (code, out) == (2, "")
    assert "reward jpeg_compressibility: option quality: Input should be a valid integer, not 'high'" in err
