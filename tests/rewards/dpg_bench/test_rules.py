"""DPG-Bench's rules against a transcription of the reference's script, from the file of questions to the figures."""

import random

import pytest
import torch
from support.dpg_bench import row, write_csv
from support.dpg_bench_reference import questions_of, run

from flowopd_cli.core.types import RewardResult
from flowopd_cli.prompts.dpg_bench import read
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.dpg_bench.rules import Question, grade, read_questions
from flowopd_cli.suites.base import score, summarize
from flowopd_cli.suites.dpg_bench import dpg_bench

CATEGORIES = (
    "entity - whole",
    "entity - part",
    "attribute - color",
    "relation - non-spatial",
    "other - count",
    "global -",
)
ITEMS, PICTURES = 1200, 4


def random_rows(rng):
    """Items whose questions come in any order, depend on any other, and sometimes repeat a number."""
    for i in range(ITEMS):
        numbers = rng.sample(range(1, 15), rng.randint(1, 9))
        for number in [*numbers, *rng.choices(numbers, k=rng.random() < 0.2)]:
            others = rng.choices([0, 0, *numbers], k=rng.randint(1, 3))
            if rng.random() < 0.01:
                others = [99]  # a question that is not asked: the reference fails over the item and leaves it out
            dependency = rng.choice([",", ", "]).join(map(str, others))
            yield row(f"item{i}", number, dependency, rng.choice(CATEGORIES), f"question {number} of {i}?")
    yield row("item7", 1, 0, "entity - whole", "a second block of an item?")


class Table(Reward):
    """Answers by a table; the level of a picture is its number."""

    info = RewardInfo("dpg-bench", "none", 0, 1)

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, images, prompts):
        graded = []
        for image, prompt in zip(images, prompts, strict=True):
            picture, questions = round(float(image.mean() * 255)), read_questions(prompt.metadata)
            answers = {q.id: self.answer(prompt.id, picture, q.id, q.question) for q in questions}
            graded.append(grade(questions, answers))
        total = torch.tensor([float("nan") if value is None else value for value, _ in graded])
        return RewardResult(total, {}, ~total.isnan(), tuple(report for _, report in graded))


def test_figures_are_those_of_the_reference(tmp_path):
    rng = random.Random(0)
    rows = list(random_rows(rng))
    words = ["yes", "yes", "yes", "no", "yes ", "two"]
    drawn = {}

    def answer(*asked):
        return drawn.setdefault(asked, rng.choice(words))

    table = questions_of(rows)
    mean, shares, by_item = run(table, answer, PICTURES)
    suite = dpg_bench(prompts=str(write_csv(tmp_path / "dpg_bench.csv", rows)))
    prompts = read(tmp_path / "dpg_bench.csv")
    assert [prompt.id for prompt in prompts] == list(table)
    images = torch.arange(PICTURES, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    reward = Table(answer)
    ours = [line for p in prompts for line in score(suite, reward, images, [p] * PICTURES, range(PICTURES))]
    values = {}
    for line in ours:
        values.setdefault(line["prompt"], []).append(line["value"])
    assert {name for name in values if name not in by_item} == {line["prompt"] for line in ours if not line["valid"]}
    for name, pictures in by_item.items():
        assert values[name] == pytest.approx(pictures, abs=1e-6)
    left_out = len(values) - len(by_item)
    assert left_out > 20
    result = summarize(suite, ours, {}, reward)
    assert result["mean"] == pytest.approx(mean, abs=1e-6)
    assert result["figures"] == pytest.approx(shares, abs=1e-12)
    assert (result["n"], result["invalid"]) == (PICTURES * len(by_item), PICTURES * left_out)
    assert result["exact"]


def test_a_failed_parent_fails_its_descendants_that_come_after_it():
    questions = [
        Question(id=3, question="c", parents=(2,), category="x"),
        Question(id=1, question="a", category="x"),
        Question(id=2, question="b", parents=(1,), category="y"),
        Question(id=4, question="d", parents=(2,), category="y"),
    ]
    total, report = grade(questions, {1: "no", 2: "yes", 3: "yes", 4: "yes"})
    assert total == 0.25
    assert report["categories"] == {"x": [1, 2], "y": [2, 2]}
    assert report["answers"] == {"3": "yes", "1": "no", "2": "yes", "4": "yes"}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "no questions in its metadata"),
        ({"questions": [{"id": 1}]}, r"questions\.0\.question: Field required"),
        ({"questions": [{"id": "x", "question": "?"}]}, r"questions\.0\.id: "),
    ],
)
def test_metadata_without_valid_questions_is_refused(metadata, words):
    with pytest.raises(ValueError, match=words):
        read_questions(metadata)
