"""GenEval's suite, and the result file of its official scorer."""

import json

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.suites import geneval
from flowopd_cli.suites.base import NamedReward

ROWS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


def test_geneval_is_four_pictures_of_each_metadata_row(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    suite = geneval.geneval(prompts=str(path), threshold=0.5)
    prompts = suite.prompts("test")
    assert [(p.id, p.task, p.metadata["tag"]) for p in prompts] == [
        ("00000", "geneval", "single_object"),
        ("00001", "geneval", "colors"),
    ]
    assert (suite.images, suite.score, suite.tagged) == (4, "official", True)
    assert suite.reward == NamedReward("geneval", {"score": "official", "threshold": 0.5})


def test_a_result_file_of_the_official_scorer(tmp_path):
    rows = [
        {"tag": row["tag"], "metadata": json.dumps(row), "correct": correct, "filename": "x", "reason": ""}
        for row, verdicts in zip(ROWS, ((True, True), (True, False)), strict=True)
        for correct in verdicts
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = geneval.read_official(tmp_path)
    assert result["mean"] == 0.75
    assert result["by_tag"] == {"single_object": 1.0, "colors": 0.5}
    assert (result["n"], result["prompts"]) == (4, 2)


@pytest.mark.parametrize(
    "row",
    [
        '{"tag": "colors"}',
        '{"tag": "colors", "metadata": "", "correct": 2}',
        '{"tag": ["colors"], "metadata": "", "correct": true}',
        '{"tag": "shapes", "metadata": "", "correct": true}',
    ],
)
def test_another_result_file_is_refused(tmp_path, row):
    (tmp_path / "results.jsonl").write_text(f"{row}\n")
    with pytest.raises(ArtifactError, match=r"not a result file of GenEval's .* row 1 has no valid"):
        geneval.read_official(tmp_path)
    (tmp_path / "results.jsonl").write_text(f"[1]\n{row}\n")
    with pytest.raises(ArtifactError, match=r"results\.jsonl:1: not JSON, or not an object"):
        geneval.read_official(tmp_path)
