"""CVTG-2K: prompts, names of pictures, pooled figures."""

import json
import random

import pytest
import torch

from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.rewards.ocr.cvtg import CVTGReward, similarity
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


class Pages:
    """A reader with a page of words for each picture, in their order."""

    name = "fixed"

    def __init__(self, pages):
        self.pages = iter(pages)

    def __call__(self, images):
        return [Reading((Line(next(self.pages), 1.0),)) for _ in images]


def test_figures_are_pooled_over_words(folder):
    suite, reward = cvtg_2k(str(folder)).suites[0], CVTGReward(Pages(["ONE twx", *["four"] * 7]))
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    result = summarize(suite, score(suite, reward, images, suite.prompts("test"), [0] * 8), {}, reward)
    assert result["mean"] == pytest.approx(8 / 10, abs=1e-6)
    ned = (1 + (1 - 1 / (3 + 1e-5)) + (1 - 4 / (5 + 1e-5)) + 7) / 10  # three is closest to twx
    assert result["figures"]["ned"] == pytest.approx(ned, abs=1e-6)
    regions = {name: value for name, value in result["figures"].items() if name.startswith("regions")}
    assert regions == {"regions-2": 0.5, "regions-3": 1.0, "regions-4": 1.0, "regions-5": 1.0}
    assert not result["exact"]


def overall(areas):
    """Transcription of the script's ``evaluate_full_dataset``: word accuracy and NED, from the words of each area.

    A word is whether it was read, and its similarity with the closest one read.
    """
    total = sum(len(words) for words in areas)
    correct = sum(sum(was_read for was_read, _ in words) for words in areas)
    distances = [similarity for words in areas for _, similarity in words]
    return correct / max(total, 1), sum(distances) / len(distances)


def test_the_figures_of_random_pictures_are_those_of_the_reference(tmp_path):
    draw, words, pages, areas = random.Random(4), ("open", "sale", "24/7", "fresh-brew"), [], []
    for name in FOLDERS:
        rows, area = [], []
        for number in range(130):
            texts = [draw.choice(words) for _ in range(int(name[-1]) + draw.randint(0, 1))]
            rows.append({"index": number, "prompt": " ".join(f"a '{text}'" for text in texts)})
            pages.append(" ".join(draw.sample([*texts, "opem", "24"], draw.randint(0, len(texts)))))
            read = pages[-1].split() or [""]
            area += [(word in read, similarity(word, read)) for word in texts]
        areas.append(area)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps({"data_list": rows}))
    suite, reward = cvtg_2k(str(tmp_path)).suites[0], CVTGReward(Pages(pages))
    prompts = suite.prompts("test")
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8).expand(len(prompts), -1, -1, -1)
    result = summarize(suite, score(suite, reward, images, prompts, [0] * len(prompts)), {}, reward)
    accuracy, ned = overall(areas)
    assert result["n"] == len(prompts) == 1040
    assert (result["mean"], result["figures"]["ned"]) == pytest.approx((accuracy, ned), abs=1e-6)
    for number in range(4):
        both = overall([areas[number], areas[number + 4]])[0]
        assert result["figures"][f"regions-{number + 2}"] == pytest.approx(both, abs=1e-12)


def test_damaged_prompts_are_one_line(folder):
    path = folder / "CVTG" / "2.json"
    path.write_text('{"data_list": [{"prompt": "no number"}]}')
    with pytest.raises(PromptError, match=r'2\.json: a row of data_list has no text "prompt" or whole number'):
        cvtg_2k(str(folder)).suites[0].prompts("test")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"has no CVTG/2\.json"):
        cvtg_2k(str(folder)).suites[0].prompts("test")
