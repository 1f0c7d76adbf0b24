"""The prompts, rewards and average of T2I-CompBench."""

import inspect
import math

import pytest

from flowopd_cli import registry
from flowopd_cli.errors import PromptError, RecipeError
from flowopd_cli.prompts.public import Fetched
from flowopd_cli.suites import compbench
from flowopd_cli.suites.compbench import (
    CATEGORIES,
    aggregate,
    figure_name,
    prompts,
    reward,
    t2i_compbench,
)
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
    first, second = prompts("color", folder)
    assert (first.text, second.text) == ("a red hen and a blue goat", "a white fox and a grey owl")
    assert second.id == "t2i-compbench/color/001"
    assert second.metadata == {"category": "color", "position": 1}
    assert len({p.id for name in CATEGORIES for p in prompts(name, folder)}) == 2 * len(CATEGORIES) + 1


def test_complex_prompts_have_their_relations(folder):
    assert [p.metadata["relations"] for p in prompts("complex", folder)] == ["spatial", "action", "both"]


def test_prompts_that_cannot_be_used_are_one_line(folder):
    with pytest.raises(PromptError, match="no category 'colour'; known: color, shape"):
        prompts("colour", folder)
    (folder / "shape_val.txt").write_text("a round a_b\n")
    with pytest.raises(PromptError, match=r"shape_val\.txt:1: it names pictures"):
        prompts("shape", folder)
    (folder / "texture_val.txt").unlink()
    with pytest.raises(PromptError, match=r"texture_val\.txt: no such file"):
        prompts("texture", folder)


def test_files_are_numbered_over_the_whole_category(folder, tmp_path):
    (suite,) = t2i_compbench("color", str(folder)).suites
    second = suite.prompts("test")[1]
    place = Place(second, 1, 3, 10)
    assert suite.layout.picture(place) == "samples/a white fox and a grey owl_000013.png"
    assert suite.layout.picture(Place(second, 1, 1, 4)) == "samples/a white fox and a grey owl_000005.png"
    assert suite.layout.find(tmp_path, place) is None
    (tmp_path / "samples").mkdir()
    for number in ("00013", "113"):  # as another program may name them
        (tmp_path / "samples" / f"a white fox and a grey owl_{number}.png").touch()
    assert suite.layout.find(tmp_path, place) == tmp_path / "samples/a white fox and a grey owl_00013.png"
    (tmp_path / "samples/a white fox and a grey owl_13.jpg").touch()
    with pytest.raises(RecipeError, match=r"_00013\.png and a white fox and a grey owl_13\.jpg are the same picture"):
        suite.layout.find(tmp_path, place)
    (tmp_path / "samples/a white fox and a grey owl_00013.png").unlink()
    assert suite.layout.find(tmp_path, place) == tmp_path / "samples/a white fox and a grey owl_13.jpg"


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
    assert t2i_compbench("spatial, numeracy").combine is None
    with pytest.raises(PromptError, match="no category 'colours'"):
        t2i_compbench("colours")


def test_options_reach_the_rewards_that_take_them():
    options = {"detector": "owlv2=/models/owl", "parser": "builtin", "blip": "vqa.pth", "batch": 4}
    assert reward("color", **options).name == "blip-vqa"
    assert reward("color", **options).options == {"parser": "builtin", "model": "vqa.pth", "batch": 4}
    assert reward("non_spatial", **options).options == {"variant": "t2i-compbench", "batch": 4}
    spatial = {"detector": "owlv2=/models/owl", "parser": "builtin", "batch": 4}
    assert reward("3d_spatial", **options).options == spatial
    assert reward("complex", **options).options == options
    assert figure_name("spatial", options["detector"]) == "spatial[owlv2]"
    with pytest.raises(RecipeError, match=r"no option 'detecter', did you mean 'detector'\?; known: batch, blip"):
        reward("color", detecter="owlv2")
    with pytest.raises(RecipeError, match=r"no detector 'unidett', did you mean 'unidet'\?; known: unidet, grounding-"):
        reward("spatial", detector="unidett=a.pth")


def test_over_unidet_every_category_has_the_benchmarks_name(folder):
    options = {"detector": "unidet", "rs200": "a.safetensors", "r50": "b.pth#sha256=0"}
    group = t2i_compbench(folder=str(folder), **options)
    assert [suite.name for suite in group.suites] == [f"t2i-compbench-{category}" for category in CATEGORIES]
    assert all(suite.published for suite in group.suites)
    assert t2i_compbench("spatial", **options).combine is aggregate
    detectors = {name: reward(name, **options).options.get("detector") for name in CATEGORIES}
    large, small = "unidet=a.safetensors", "unidet=b.pth#sha256=0"
    expected = {"spatial": large, "complex": large, "3d_spatial": small, "numeracy": small}
    assert {name: value for name, value in detectors.items() if value} == expected
    assert reward("spatial", detector="unidet").options == {"detector": "unidet"}
    with pytest.raises(RecipeError, match="rs200 is a checkpoint of unidet: add detector: unidet"):
        reward("spatial", **{**options, "detector": "owlv2"})


def test_rewards_take_the_options_of_their_category():
    for category in CATEGORIES.values():
        parameters = inspect.signature(registry.REWARDS.load(category.reward)).parameters
        assert set(category.options.values()) | set(category.fixed) <= set(parameters)


def test_prompts_are_fetched_where_no_folder_is_given(folder, monkeypatch):
    monkeypatch.setattr(compbench, "fetch", lambda name: Fetched(folder, {}, True))
    (suite,) = t2i_compbench(["numeracy"]).suites
    assert len(suite.prompts("test")) == 2


def test_the_average_leaves_other_detectors_out():
    comparable = {"t2i-compbench-color": 0.8, "t2i-compbench-non_spatial": 0.4}
    experimental = {"t2i-compbench-spatial[owlv2]": 0.1}
    results = {
        name: {"suite": name, "mean": mean, "stderr": 0.03, "n": 20, "exact": True}
        for name, mean in {**comparable, **experimental}.items()
    }
    average = aggregate(results)
    assert average["mean"] == pytest.approx(0.6)
    assert average["stderr"] == pytest.approx(0.03 * math.sqrt(2) / 2)
    assert (average["parts"], average["experimental"]) == (comparable, experimental)
    assert average["note"] == "mean of 2 comparable of 8 categories"
    assert average["n"] == 40
    assert math.isnan(aggregate({name: results[name] for name in experimental})["mean"])
