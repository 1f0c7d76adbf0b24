"""LongText-Bench: prompts, names of pictures, and the pooled share."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from flowopd_cli.errors import PromptError, RecipeError
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.rewards.ocr.longtext import LongTextReward
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.stages.evaluation.requests import Requests, plan
from flowopd_cli.stages.evaluation.suites import make_rewards
from flowopd_cli.suites.base import NamedReward, score, summarize
from flowopd_cli.suites.layouts import Place
from flowopd_cli.suites.longtext import chinese, english, longtext_bench

ROWS = {
    "text_prompts.jsonl": [
        {"prompt": "a sign", "text": ["ONE two three"], "prompt_id": 0},
        {"prompt": "a page", "text": ["four"], "prompt_id": 197},
    ],
    "text_prompts_zh.jsonl": [{"prompt": "路牌", "text": ["公园"], "prompt_id": 3}],
}


@pytest.fixture
def folder(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return tmp_path


def test_both_languages_are_suites_of_their_own(folder):
    group = longtext_bench(str(folder))
    assert [suite.name for suite in group.suites] == ["longtext-bench-en", "longtext-bench-zh"]
    assert group.combine is None
    assert [[p.metadata["language"] for p in suite.prompts("test")] for suite in group.suites] == [["en"] * 2, ["zh"]]
    assert group.suites[0].reward == group.suites[1].reward == NamedReward("longtext")
    assert group.suites[0].published["Qwen-Image"] == 0.943
    with pytest.raises(RecipeError, match="names a folder with both files"):
        longtext_bench(str(folder / "text_prompts.jsonl"))


def test_another_reader_is_part_of_the_name():
    suite = chinese(reader="rapidocr", drop_score=0.3)
    assert suite.name == "longtext-bench-zh[rapidocr]"
    assert suite.picture_folder == "longtext-bench-zh"
    assert suite.reward == NamedReward("longtext", {"reader": "rapidocr", "drop_score": 0.3})
    assert not suite.published
    remote = chinese(reader="rapidocr", reward="remote:http://h", timeout=9)
    assert (remote.name, remote.published) == (suite.name, {})
    assert remote.reward == NamedReward("remote:http://h", {"timeout": 9})


def test_pictures_are_named_by_the_benchmark_s_number(folder):
    suite = english(str(folder))
    last = suite.prompts("test")[1]
    assert suite.layout.picture(Place(last, 1, 0, 4)) == "0197_1.png"
    (folder / "text_prompts.jsonl").write_text('{"prompt": "a sign", "text": ["one"]}')
    with pytest.raises(PromptError, match='1: not LongText-Bench\'s metadata: "prompt_id"'):
        suite.prompts("test")


def test_two_prompts_with_one_number_are_refused(folder):
    rows = [*ROWS["text_prompts.jsonl"], {"prompt": "a door", "text": ["five"], "prompt_id": 197}]
    (folder / "text_prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = EvalSpec(suites=("longtext-bench-en",))
    with pytest.raises(
        PromptError, match=r"'a page' and 'a door' have one picture, longtext-bench-en/0197_1\.png: give"
    ):
        plan([english(str(folder))], (), spec)


class Pages:
    """A reader with a page of words for each picture."""

    name = "fixed"

    def __init__(self, pages):
        self.pages = pages

    def __call__(self, images):
        return [Reading((Line(" ".join(page), 1.0),)) for page in self.pages]


@pytest.mark.parametrize("reader", ["qwen2.5-vl", "rapidocr"])
def test_a_suite_is_read_by_the_reader_in_its_name(folder, reader):
    suite = replace(english(str(folder), reader=reader), reward=lambda: LongTextReward(Pages([])))
    with pytest.raises(RecipeError, match=rf"is read by {reader}, longtext reads by fixed: name its reader"):
        make_rewards(Requests((suite,)))
    suite = replace(suite, engine="fix")
    assert make_rewards(Requests((suite,)))[suite.name].engine == "fixed"


def test_the_figure_is_the_share_of_all_words(folder):
    suite, reward = english(str(folder)), LongTextReward(Pages([["one"], ["four!"]]))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    result = summarize(suite, score(suite, reward, images, suite.prompts("test"), [0, 0]), {}, reward)
    assert result["mean"] == pytest.approx(2 / 4, abs=1e-6)
    assert (result["n"], result["prompts"], result["exact"]) == (2, 2, False)


def test_the_figure_of_random_pictures_is_that_of_the_reference(tmp_path):
    draw, words = random.Random(3), ("ONE", "two", "three", "Café", "4")
    texts = [[draw.choice(words) for _ in range(draw.randint(1, 9))] for _ in range(1000)]
    rows = [{"prompt": f"a sign {i}", "text": own, "prompt_id": i} for i, own in enumerate(texts)]
    (tmp_path / "text_prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pages = [draw.choices(words, k=draw.randint(0, 9)) for _ in texts]
    suite, reward = english(str(tmp_path)), LongTextReward(Pages(pages))
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8).expand(1000, -1, -1, -1)
    result = summarize(suite, score(suite, reward, images, suite.prompts("test"), [0] * 1000), {}, reward)
    matched = [(Counter(own) & Counter(page)).total() for own, page in zip(texts, pages, strict=True)]
    assert result["mean"] == pytest.approx(sum(matched) / sum(map(len, texts)), abs=1e-6)  # by summary_scores.py
