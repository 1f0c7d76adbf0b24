"""The figures of T2I-CompBench's own scripts."""

import json

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.suites.base import MissingScores
from flowopd_cli.suites.compbench import aggregate, experimental, t2i_compbench
from flowopd_cli.suites.compbench_import import OUTPUTS, import_category


def write(folder, answers, average=None, text=False):
    """The output of a script: ids by position, BLIP's answers as text with four decimals."""
    folder.mkdir(parents=True)
    rows = [{"question_id": i, "answer": f"{a:.4f}" if text else a} for i, a in enumerate(answers)]
    (folder / "vqa_result.json").write_text(json.dumps(rows))
    if average is not None:
        (folder / average[0]).write_text(average[1])


def test_official_scores_are_read_by_category(tmp_path):
    write(tmp_path / "color/annotation_blip", [0.5, 0.7, 0.9, 0.3], ("blip_vqa_score.txt", "BLIP-VQA score:0.6"), True)
    write(tmp_path / "spatial/labels/annotation_obj_detection_2d", [0, 0.75], ("avg_score.txt", "score avg:0.375"))
    average = ("avg_result.txt", "avg score is 0.375")
    write(tmp_path / "3d_spatial/labels/annotation_obj_detection_3d", [0.25, 0.5], average)
    write(tmp_path / "numeracy/annotation_num", [1, 0.5], ("score.txt", "total:1.5 num:2 avg:0.75"))
    write(tmp_path / "t2i-compbench-non_spatial/annotation_clip", [0.3, 0.32])
    write(tmp_path / "t2i-compbench-complex[owlv2]/annotation_3_in_1", [0.3, 0.4], ("vqa_score.txt", "score avg:0.35"))
    expected = {"color": 0.6, "spatial": 0.375, "3d_spatial": 0.375, "numeracy": 0.75, "non_spatial": 0.31}
    expected["complex"] = 0.35
    results = {name: import_category(tmp_path, name, images=2) for name in expected}
    assert {name: round(result["mean"], 6) for name, result in results.items()} == expected
    color = results["color"]
    assert (color["n"], color["prompts"], color["engine"], color["exact"]) == (4, 2, "BLIP_vqa.py", False)
    assert color["note"] == "4 pictures; the whole category has 3000"
    assert color["stderr"] == pytest.approx(0.0)  # both prompts have the mean 0.6
    assert color["suite"] == "t2i-compbench-color"
    assert color["published"]["SD3.5-M"] == 0.7994
    assert not any(experimental(result["suite"]) for result in results.values())
    assert len(aggregate(results)["parts"]) == 6
    assert set(OUTPUTS) - set(expected) == {"shape", "texture"}


def test_a_suite_imports_its_category_from_its_folder_or_the_output_itself(tmp_path):
    (shape,) = t2i_compbench("shape").suites
    assert shape.imported is not None
    write(tmp_path / "c/annotation_blip", [0.5, 0.75])
    assert shape.imported(tmp_path / "c")["mean"] == pytest.approx(0.625)
    write(tmp_path / "shape/annotation_blip", [0.5])
    assert shape.imported(tmp_path)["mean"] == pytest.approx(0.5)
    with pytest.raises(MissingScores, match="no such file"):
        import_category(tmp_path, "spatial")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no rows"),
        ("{", r"vqa_result\.json: damaged list of question_id and answer"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"question_id": Infinity, "answer": 1}]', "no list of question_id and answer"),
        ('{"question_id": 3}', "no list of question_id and answer"),
        ('[{"question_id": 3, "answer": NaN}]', "answer 3 is not a number"),
    ],
)
def test_damaged_scores_are_refused(tmp_path, content, message):
    path = tmp_path / "numeracy/annotation_num/vqa_result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ArtifactError, match=message):
        import_category(tmp_path, "numeracy")


def test_an_average_of_another_list_is_refused(tmp_path):
    write(tmp_path / "numeracy/annotation_num", [1, 0.5], ("score.txt", "total:1.5 num:2 avg:0.5"))
    with pytest.raises(ArtifactError, match=r"states 0.5, but vqa_result.json gives 0.750000"):
        import_category(tmp_path, "numeracy")
