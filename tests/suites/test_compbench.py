import json
import math
from pathlib import Path

import pytest
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError, RecipeError
from flowopd_cli.prompts.public import Fetched
from flowopd_cli.rewards.compbench.rules import kinds_of
from flowopd_cli.suites import compbench as suites
from flowopd_cli.suites.compbench import (
    CATEGORIES,
    COMPARABLE,
    aggregate,
    compbench_picture,
    experimental,
    figure_name,
    prompts,
    reward,
    t2i_compbench,
)
from flowopd_cli.suites.compbench_import import import_scores
from flowopd_cli.suites.layouts import Place

COMPLEX = ("The red cup is next to the jug.", "The old dog ran home.", "The kite flew near the tall tree.")


@pytest.fixture
def folder(tmp_path):
    """Prompt files in the benchmark's form: Windows line ends here, no line end there."""
    root = tmp_path / "prompts"
    root.mkdir()
    for category in CATEGORIES:
        (root / f"{category}_val.txt").write_bytes(b"a red hen and a blue goat\r\na white fox and a grey owl\r\n")
    (root / "spatial_val.txt").write_text("a hen near a fox\na goat on the left of an owl")
    (root / "complex_val.txt").write_bytes("\r\n".join(COMPLEX).encode())
    (root / "complex_val_spatial.txt").write_bytes(b"The red cup is next to the jug.\r\n")
    (root / "complex_val_action.txt").write_text("the OLD dog ran home\n")
    return root


def test_prompts_carry_category_and_position(folder):
    found = prompts("color", folder)
    assert [p.text for p in found] == ["a red hen and a blue goat", "a white fox and a grey owl"]
    assert found[1].id == "t2i-compbench/color/001"
    assert found[1].metadata == {"category": "color", "position": 1}
    assert len({p.id for name in CATEGORIES for p in prompts(name, folder)}) == 2 * len(CATEGORIES) + 1


def test_complex_prompts_say_their_relations(folder):
    kinds = [p.metadata["relations"] for p in prompts("complex", folder)]
    assert kinds == ["spatial", "action", "both"]
    lists = [(folder / f"complex_val_{name}.txt").read_text().splitlines() for name in ("spatial", "action")]
    assert kinds == kinds_of(COMPLEX, *lists)


def test_prompts_that_cannot_be_used_are_one_line(folder):
    with pytest.raises(PromptError, match="no category 'colour'; known: color, shape"):
        prompts("colour", folder)
    (folder / "shape_val.txt").write_text("a round a_b\n")
    with pytest.raises(PromptError, match=r"shape_val\.txt:1: pictures are named after it"):
        prompts("shape", folder)
    (folder / "texture_val.txt").unlink()
    with pytest.raises(PromptError, match=r"texture_val\.txt: no such file"):
        prompts("texture", folder)


def test_files_are_numbered_over_the_whole_category(folder):
    assert compbench_picture(Place(Prompt("0", "a red hen", "t"), 7, 3, 10)) == "samples/a red hen_000073.png"
    (suite,) = t2i_compbench("color", str(folder)).suites
    second = suite.prompts("test")[1]
    assert suite.layout.picture(Place(second, 1, 3, 10)) == "samples/a white fox and a grey owl_000013.png"
    assert suite.layout.picture(Place(second, 1, 1, 4)) == "samples/a white fox and a grey owl_000005.png"


def test_pictures_of_another_program_are_found_by_their_number(folder, tmp_path):
    (suite,) = t2i_compbench("color", str(folder)).suites
    place = Place(suite.prompts("test")[1], 1, 3, 10)
    assert suite.layout.find(tmp_path, place) is None
    (tmp_path / "samples").mkdir()
    for name in ("a white fox and a grey owl_00013.png", "a white fox and a grey owl_113.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / "samples" / name)
    found = suite.layout.find(tmp_path, place)
    assert found is not None
    assert found.name == "a white fox and a grey owl_00013.png"


def test_the_whole_suite_has_eight_categories_of_its_own(folder):
    group = t2i_compbench(folder=str(folder))
    assert [suite.name for suite in group.suites] == [
        "t2i-compbench-color",
        "t2i-compbench-shape",
        "t2i-compbench-texture",
        "t2i-compbench-spatial[grounding-dino]",
        "t2i-compbench-3d_spatial[grounding-dino+dpt-hybrid]",
        "t2i-compbench-numeracy[grounding-dino]",
        "t2i-compbench-non_spatial",
        "t2i-compbench-complex[grounding-dino]",
    ]
    assert {suite.images for suite in group.suites} == {10}
    assert group.suites[0].published == {"SD3.5-M": 0.7994, "Flow-GRPO": 0.8379, "Flow-OPD": 0.8298}
    assert [name for name in CATEGORIES if not experimental(figure_name(name))] == list(COMPARABLE)
    assert t2i_compbench("spatial, numeracy").combine is None
    with pytest.raises(PromptError, match="no category 'colours'"):
        t2i_compbench("colours")


def test_options_reach_the_rewards_that_take_them():
    options = {"detector": "owlv2=/models/owl", "parser": "builtin", "blip": "vqa.pth", "batch": 4}
    assert reward("color", **options).name == "blip-vqa"
    assert reward("color", **options).options == {"parser": "builtin", "model": "vqa.pth", "batch": 4}
    assert reward("non_spatial", **options).options == {"variant": "t2i-compbench", "batch": 4}
    assert reward("3d_spatial", **options).options == {
        "detector": "owlv2=/models/owl",
        "parser": "builtin",
        "batch": 4,
    }
    assert reward("complex", **options).options == options
    assert figure_name("spatial", options["detector"]) == "spatial[owlv2]"
    with pytest.raises(RecipeError, match="no option 'detecter'; known: batch, blip"):
        reward("color", detecter="owlv2")


def test_rewards_take_the_options_that_are_theirs(monkeypatch):
    """Names here are those of the constructors: what the suite sends, the reward accepts."""
    import inspect

    from flowopd_cli.rewards.compbench.blip_vqa import BlipVQAReward
    from flowopd_cli.rewards.compbench.rewards import ComplexReward, NumeracyReward, Spatial3DReward, SpatialReward
    from flowopd_cli.rewards.preference.clipscore import ClipScoreReward

    classes = {
        "blip-vqa": BlipVQAReward,
        "clipscore": ClipScoreReward,
        "compbench-spatial": SpatialReward,
        "compbench-3d-spatial": Spatial3DReward,
        "compbench-numeracy": NumeracyReward,
        "compbench-complex": ComplexReward,
    }
    for category in CATEGORIES.values():
        taken = set(inspect.signature(classes[category.reward]).parameters)
        assert set(category.options.values()) | set(category.fixed) <= taken


def test_prompts_are_fetched_where_no_folder_is_given(folder, monkeypatch):
    fetched = Fetched(folder, {}, True)
    monkeypatch.setattr(suites, "fetch", lambda name: fetched)
    (suite,) = t2i_compbench(["numeracy"]).suites
    assert len(suite.prompts("test")) == 2


def result(name, mean, stderr=0.03, exact=True):
    return {"suite": name, "mean": mean, "stderr": stderr, "n": 20, "exact": exact}


def test_the_average_leaves_other_detectors_out():
    found = {
        name: result(name, mean)
        for name, mean in (
            ("t2i-compbench-color", 0.8),
            ("t2i-compbench-non_spatial", 0.4),
            ("t2i-compbench-spatial[owlv2]", 0.1),
        )
    }
    whole = aggregate(found)
    assert whole["mean"] == pytest.approx(0.6)
    assert whole["stderr"] == pytest.approx(0.03 * math.sqrt(2) / 2)
    assert whole["parts"] == {"t2i-compbench-color": 0.8, "t2i-compbench-non_spatial": 0.4}
    assert whole["experimental"] == {"t2i-compbench-spatial[owlv2]": 0.1}
    assert whole["note"] == "mean of 2 comparable of 8 categories"
    assert whole["n"] == 40
    assert math.isnan(aggregate({"s": result("t2i-compbench-spatial[owlv2]", 0.1)})["mean"])


def write(folder, answers, average=None, text=False):
    """What a script leaves: ids by position, BLIP's answers as text with four decimals."""
    folder.mkdir(parents=True)
    rows = [{"question_id": i, "answer": f"{a:.4f}" if text else a} for i, a in enumerate(answers)]
    (folder / "vqa_result.json").write_text(json.dumps(rows))
    if average is not None:
        (folder / average[0]).write_text(average[1])


def test_official_scores_are_read_by_category(tmp_path):
    write(tmp_path / "color/annotation_blip", [0.5, 0.7, 0.9, 0.3], ("blip_vqa_score.txt", "BLIP-VQA score:0.6"), True)
    write(tmp_path / "spatial/labels/annotation_obj_detection_2d", [0, 0.75], ("avg_score.txt", "score avg:0.375"))
    write(
        tmp_path / "3d_spatial/labels/annotation_obj_detection_3d",
        [0.25, 0.5],
        ("avg_result.txt", "avg score is 0.375"),
    )
    write(tmp_path / "numeracy/annotation_num", [1, 0.5], ("score.txt", "total:1.5 num:2 avg:0.75"))
    write(tmp_path / "t2i-compbench-non_spatial/annotation_clip", [0.3, 0.32])
    write(tmp_path / "t2i-compbench-complex[owlv2]/annotation_3_in_1", [0.3, 0.4], ("vqa_score.txt", "score avg:0.35"))
    found = import_scores(tmp_path, images=2)
    assert {name: round(r["mean"], 6) for name, r in found.items()} == {
        "color": 0.6,
        "spatial": 0.375,
        "3d_spatial": 0.375,
        "numeracy": 0.75,
        "non_spatial": 0.31,
        "complex": 0.35,
    }
    color = found["color"]
    assert (color["n"], color["prompts"], color["engine"], color["exact"]) == (4, 2, "BLIP_vqa.py", False)
    assert color["note"] == "4 pictures; the whole category has 3000"
    assert color["stderr"] == pytest.approx(0.0)  # both prompts have the mean 0.6
    assert color["suite"] == "t2i-compbench-color"
    assert color["published"]["SD3.5-M"] == 0.7994
    assert not any(experimental(r["suite"]) for r in found.values())
    assert len(aggregate(found)["parts"]) == 6


def test_the_folder_of_one_category_may_be_given_itself(tmp_path):
    write(tmp_path / "a/labels/annotation_obj_detection_2d", [0.5, 0.75])
    assert list(import_scores(tmp_path / "a")) == ["spatial"]
    for part in ("annotation_blip", "annotation_clip", "annotation_3_in_1"):
        write(tmp_path / "b" / part, [0.5, 0.75])
    write(tmp_path / "b/labels/annotation_obj_detection_2d", [0.5, 0.75])
    assert list(import_scores(tmp_path / "b")) == ["complex"]
    write(tmp_path / "c/annotation_blip", [0.5, 0.75])
    with pytest.raises(ArtifactError, match=r"scores of color, shape, texture\? Put them into a folder"):
        import_scores(tmp_path / "c")
    (suite,) = t2i_compbench("shape").suites
    assert suite.imported is not None
    assert suite.imported(tmp_path / "c")["mean"] == pytest.approx(0.625)


def test_a_suite_imports_its_own_category(tmp_path):
    write(tmp_path / "spatial/labels/annotation_obj_detection_2d", [0.5, 0.75])
    (suite,) = t2i_compbench("spatial").suites
    assert suite.imported is not None
    assert suite.imported(tmp_path)["suite"] == "t2i-compbench-spatial"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "has no rows"),
        ("{", r"vqa_result\.json: damaged list of question_id and answer"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"question_id": Infinity, "answer": 1}]', "no list of question_id and answer"),
        ('{"question_id": 3}', "no list of question_id and answer"),
        ('[{"question_id": 0}]', "no list of question_id and answer"),
        ('[{"question_id": 3, "answer": NaN}]', "answer 3 is not a number"),
    ],
)
def test_damaged_scores_are_refused(tmp_path, content, words):
    path = tmp_path / "numeracy/annotation_num/vqa_result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ArtifactError, match=words):
        import_scores(tmp_path)


def test_an_average_of_another_list_is_refused(tmp_path):
    write(tmp_path / "numeracy/annotation_num", [1, 0.5], ("score.txt", "total:1.5 num:2 avg:0.5"))
    with pytest.raises(ArtifactError, match=r"states 0.5, but vqa_result.json gives 0.750000"):
        import_scores(tmp_path)
    with pytest.raises(ArtifactError, match="no scores of T2I-CompBench's scripts"):
        import_scores(Path(tmp_path / "empty"))
