"""GenEval 2's suite: its prompts, and its figures against the reference's analysis, transcribed here."""

import json
import random

import pytest
from scipy.stats import gmean

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.atoms import SKILLS
from flowopd_cli.suites.base import NamedReward
from flowopd_cli.suites.geneval2 import breakdown, geneval2

ROW = {
    "prompt": "a green pig",
    "atom_count": 2,
    "vqa_list": [["How many pigs are in the image?", "one"], ["Is the pig green?", "Yes"]],
    "skills": ["count", "attribute"],
}


def written(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_one_picture_of_each_prompt_by_the_geometric_mean(tmp_path):
    suite = geneval2(prompts=written(tmp_path, ROW, {**ROW, "prompt": "a pig"}), source="folder")
    prompts = suite.prompts("test")
    assert [(p.id, p.text, p.task) for p in prompts] == [
        ("00000", "a green pig", "geneval2"),
        ("00001", "a pig", "geneval2"),
    ]
    assert (suite.images, suite.score, suite.judge) == (1, "gm", "geneval2")
    assert suite.reward == NamedReward("geneval2", {"source": "folder"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vqa_list": []}, "vqa_list: .*at least 1 item"),
        ({"vqa_list": [["Is it?"]]}, r"vqa_list\.0\.1: Field required"),
        ({"skills": ["count"]}, "2 questions in vqa_list, but 1 skills"),
        ({"skills": ["count", "color"]}, r"skills\.1: Input should be 'object'.*not 'color'"),
        ({"atom_count": True}, "atom_count: Input should be a number"),
        ({"atom_count": 0}, "atom_count: Input should be greater than 0"),
    ],
)
def test_a_row_that_is_not_geneval_2_s_is_named_by_its_line(tmp_path, changes, words):
    suite = geneval2(prompts=written(tmp_path, ROW, {**ROW, **changes}))
    with pytest.raises(PromptError, match=rf"data\.jsonl:2: not GenEval 2's metadata: {words}"):
        suite.prompts("test")


def analysis(scores, skills, atoms):
    """Transcribed: the figures that ``soft_tifa_analysis.py`` of GenEval 2 prints, as fractions."""
    figures = {}
    for skill in ("object", "attribute", "count", "position", "verb"):
        values = [
            s for row, names in zip(scores, skills, strict=True) for s, n in zip(row, names, strict=True) if n == skill
        ]
        figures[skill] = sum(values) / len(values)
    for count in range(3, 11):
        correct = [gmean(row) for row, number in zip(scores, atoms, strict=True) if number == count]
        figures[f"atoms-{count}"] = sum(correct) / len(correct)
    return figures


def test_figures_by_skill_and_atomicity_are_those_of_the_reference():
    draw = random.Random(0)
    atoms = [draw.randint(3, 10) for _ in range(1000)]
    skills = [[draw.choice(SKILLS) for _ in range(count + draw.randint(0, 2))] for count in atoms]
    scores = [[draw.random() ** draw.choice((1, 9)) for _ in names] for names in skills]
    details = [
        {"probabilities": row, "skills": names, "atom_count": count}
        for row, names, count in zip(scores, skills, atoms, strict=True)
    ]
    rows = [{"valid": True, "details": detail} for detail in details]
    invalid = [{"valid": False, "details": {"error": "no number"}}, {"valid": True, "details": {"judge": "another"}}]
    figures = breakdown([*rows, *invalid])
    expected = analysis(scores, skills, atoms)
    assert list(figures) == list(expected)
    assert figures == pytest.approx(expected, rel=1e-12)
