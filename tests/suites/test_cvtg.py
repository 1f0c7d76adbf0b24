"""CVTG-2K: prompts, names of pictures, pooled figures."""

import json

import pytest
import torch

from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.rewards.ocr.cvtg import CVTGReward
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.suites.base import NamedReward, score, summarize
from flowopd_cli.suites.cvtg import FOLDERS, cvtg_2k
from flowopd_cli.suites.layouts import Place


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(FOLDERS):
        texts = "one two three" if name == "CVTG/2" else "four"
        rows = [{"index": number, "prompt": f"{name} with '{texts}'"}]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps({"data_list": rows}))
    return tmp_path


def test_both_figures_are_of_one_set_of_pictures_in_the_official_layout(folder):
    words, clip = cvtg_2k(str(folder), reader="rapidocr", clip="my/clip").suites
    assert words.reward == NamedReward("cvtg", {"reader": "rapidocr"})
    assert clip.reward == NamedReward("clipscore", {"variant": "cvtg-2k", "source": "my/clip"})
    assert words.prompts is clip.prompts
    prompts = words.prompts("test")
    assert [prompt.id for prompt in prompts] == [f"{name}/{number}" for number, name in enumerate(FOLDERS)]
    assert words.layout.picture(Place(prompts[5], 5, 0, 1)) == "CVTG-Style/3/5.png"
    assert words.layout.picture(Place(prompts[5], 5, 1, 2)) == "CVTG-Style/3/5_1.png"


class Reader:
    name = "fixed"

    def __call__(self, images):
        return [Reading((Line("ONE twx", 1.0),))] + [Reading((Line("four", 1.0),))] * 7


def test_figures_are_pooled_over_words(folder):
    suite, reward = cvtg_2k(str(folder)).suites[0], CVTGReward(Reader())
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    result = summarize(suite, score(suite, reward, images, suite.prompts("test"), [0] * 8), {}, reward)
    assert result["mean"] == pytest.approx(8 / 10, abs=1e-6)
    ned = (1 + (1 - 1 / (3 + 1e-5)) + (1 - 4 / (5 + 1e-5)) + 7) / 10  # three is closest to twx
    assert result["figures"]["ned"] == pytest.approx(ned, abs=1e-6)
    regions = {name: value for name, value in result["figures"].items() if name.startswith("regions")}
    assert regions == {"regions-2": 0.5, "regions-3": 1.0, "regions-4": 1.0, "regions-5": 1.0}
    assert not result["exact"]


def test_damaged_prompts_are_one_line(folder):
    path = folder / "CVTG" / "2.json"
    path.write_text('{"data_list": [{"prompt": "no number"}]}')
    with pytest.raises(PromptError, match=r'2\.json: a row of data_list has no text "prompt" or whole number'):
        cvtg_2k(str(folder)).suites[0].prompts("test")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"has no CVTG/2\.json"):
        cvtg_2k(str(folder)).suites[0].prompts("test")
