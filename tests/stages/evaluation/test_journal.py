"""The journal of an evaluation: damaged lines count as missing."""

import json

import pytest
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.function import FunctionReward
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.journal import Journal, judge, signature
from flowopd_cli.stages.evaluation.requests import PictureRequest
from flowopd_cli.suites.base import NamedReward, Suite
from flowopd_cli.suites.layouts import FLAT, Place

PROMPT = Prompt("0", "a cat", "t")
REWARD = FunctionReward(lambda images, prompts: [0.0] * len(prompts), "zero", {})
SUITE = Suite(name="s", version="1", prompts=lambda split: [PROMPT], reward=NamedReward("toy-ocr", {}))
REQUEST = PictureRequest(PROMPT, Place(PROMPT, 0, 0, 1), "s", FLAT, ("s",))
ROW = {"prompt": "0", "task": "t", "text": "a cat", "index": 0, "tag": "", "valid": True, "value": 0.5}


@pytest.fixture
def line(tmp_path):
    """A sound line about a picture that is there, and the file that it belongs into."""
    run, folder = RunDir(tmp_path), PictureFolder(tmp_path / "images")
    picture = folder.root / REQUEST.path
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(picture)
    run.scored_dir.mkdir(parents=True)
    sound = {"suite": "s", "judge": judge(SUITE, REWARD), "file": signature(picture)}
    sound["row"] = {**ROW, "scores": {}, "details": {}}

    def rows(*lines):
        (run.scored_dir / "0").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return Journal(run.scored_dir, 0, folder, [SUITE], {"s": REWARD}).rows(REQUEST)

    return sound, rows


def test_a_sound_line_is_taken(line):
    sound, rows = line
    assert rows(sound) == [("s", sound["row"])]


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
    sound, rows = line
    assert rows({**sound, **changes}) is None
    assert rows({**sound, **changes}, sound) is not None
