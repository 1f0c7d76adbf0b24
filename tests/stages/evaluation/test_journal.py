"""Rows of pictures that are scored already: those that are damaged count as not there."""

import json

import pytest
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.function import FunctionReward
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.journal import Journal, judge, signature
from flowopd_cli.stages.evaluation.requests import Wanted
from flowopd_cli.suites.base import NamedReward, Suite
from flowopd_cli.suites.layouts import FLAT, Place

PROMPT = Prompt("0", "a cat", "t")
REWARD = FunctionReward(lambda images, prompts: [0.0] * len(prompts), "zero", {})
SUITE = Suite(name="s", version="1", prompts=lambda split: [PROMPT], reward=NamedReward("toy-ocr", {}))
WANTED = Wanted(PROMPT, Place(PROMPT, 0, 0, 1), "s", FLAT, ("s",))
ROW = {"prompt": "0", "task": "t", "text": "a cat", "index": 0, "tag": "", "valid": True, "value": 0.5}


@pytest.fixture
def line(tmp_path):
    """A sound line about a picture that is there, and the file that it belongs into."""
    run, folder = RunDir(tmp_path), PictureFolder(tmp_path / "images")
    picture = folder.root / WANTED.path
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(picture)
    run.scored_dir.mkdir(parents=True)
    sound = {"suite": "s", "judge": judge(SUITE, REWARD), "file": signature(picture)}
    sound["row"] = {**ROW, "scores": {}, "details": {}}

    def known(*lines):
        (run.scored_dir / "0").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return Journal(run, 0, folder, [SUITE], {"s": REWARD}).rows(WANTED)

    return sound, known


def test_a_sound_line_is_taken(line):
    sound, known = line
    assert known(sound) == [("s", sound["row"])]


@pytest.mark.parametrize(
    "changes",
    [
        {"row": None},
        {"row": {}},
        {"suite": ["s"]},
        {"judge": 3},
        {"file": None},
        {"row": {**ROW, "index": "0"}},
        {"row": ROW},
    ],
)
def test_a_damaged_line_is_passed_over(line, changes):
    sound, known = line
    assert known({**sound, **changes}) is None
    assert known({**sound, **changes}, sound) is not None
