"""The spatial, counting and complex rewards, with scripted detectors and with tiny networks."""

import pytest
import torch
from support.tiny_compbench import blip, save_depth, save_dino, save_original_blip, save_owl
from support.tiny_scorers import pictures, save_clip

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.compbench import rewards
from flowopd_cli.rewards.compbench.blip_vqa import BlipVQA
from flowopd_cli.rewards.compbench.rewards import ComplexReward, NumeracyReward, Spatial3DReward, SpatialReward
from flowopd_cli.rewards.compbench.rules import attribute_score
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import ClipEncoder, paired_cosine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    for name, save in (("dino", save_dino), ("owl", save_owl), ("depth", save_depth), ("clip", save_clip)):
        (root / name).mkdir()
        save(root / name)
    save_original_blip(root / "blip", blip())
    return {name: str(root / name) for name in ("dino", "owl", "depth", "clip", "blip/model_base_vqa.pth")}


@pytest.fixture
def images():
    return pictures(3, height=64, width=64)


def prompts(*texts):
    return [Prompt(str(i), text, "t2i-compbench") for i, text in enumerate(texts)]


class Scripted:
    """Returns the given detections and records the labels that it was called with."""

    name, engine, framed = "scripted", "scripted/1", False

    def __init__(self, *rows):
        self.rows, self.labels = rows, []

    def __call__(self, images, labels):
        self.labels += [list(names) for names in labels]
        return [row and list(row) for row in self.rows[: len(images)]]


def detection(label, score, *box):
    return Detection(label, tuple(map(float, box)), score)


CAT = detection("cat", 0.8, 0, 0, 10, 10)
NEAR = [CAT, detection("person", 0.6, 20, 30, 30, 40)]


@pytest.fixture
def scripted(folders):
    """A spatial or counting reward with a scripted detector."""

    def make(kind, *rows, **options):
        reward = kind(f"grounding-dino={folders['dino']}", parser="builtin", **options)
        reward.detector = Scripted(*rows)
        return reward

    return make


def test_spatial_scores_follow_the_rule_in_the_detectors_frame(scripted, images):
    """A picture of 64 pixels becomes 479: 20 pixels are 149.7, near; 21 are 157.2, on both axes not."""
    reward = scripted(SpatialReward, NEAR, [CAT, detection("person", 0.6, 21, 30, 31, 40)], NEAR)
    texts = ("a cat next to a girl", "a cat next to a girl", "a cat on the right of a girl")
    result = reward(images, prompts(*texts))
    expected = [0.35 + 0.5, 0.35 + 0.5 * 150 / (30 * 479 / 64), 0.0]
    assert result.total.tolist() == pytest.approx(expected, abs=1e-6)
    assert reward.detector.labels == [["cat", "person"]] * 3
    assert (result.details[0]["objects"], result.details[0]["relation"]) == (["cat", "person"], "next to")
    assert result.details[0]["found"][0][:2] == ["cat", 0.8]


def test_depth_decides_which_object_is_in_front(scripted, folders, images):
    objects = [detection("cat", 0.8, 0, 0, 32, 32), detection("dog", 0.6, 4, 0, 36, 32)]
    reward = scripted(Spatial3DReward, objects, depth=folders["depth"])
    near_left = torch.zeros(479, 479)
    near_left[:30] = 1.0  # rows are x in the official crop
    reward.depth = lambda images: [near_left for _ in images]
    assert reward(images[:1], prompts("a cat in front of a dog")).total.tolist() == pytest.approx([0.35 + 0.5])
    assert reward(images[:1], prompts("a cat behind a dog")).total.tolist() == pytest.approx([0.35])


def test_numeracy_counts_the_things_of_the_prompt(scripted, images):
    two = [detection("dog", 0.9, 0, 0, 20, 20), detection("dog", 0.8, 30, 0, 50, 20)]
    reward = scripted(NumeracyReward, two, two, [])
    result = reward(images, prompts("two dogs", "two dogs and three ships", "one goldfish"))
    assert result.total.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert reward.detector.labels == [["dog"], ["dog", "boat"], ["fish"]]
    assert result.details[1]["wanted"] == [["dog", 2], ["boat", 3]]


@pytest.mark.parametrize(("kind", "folder"), [("grounding-dino", "dino"), ("owlv2", "owl")])
def test_names_have_the_detector(folders, images, kind, folder):
    spec = f"{kind}={folders[folder]}"
    spatial, numeracy = SpatialReward(spec, parser="builtin"), NumeracyReward(spec, parser="builtin")
    assert (spatial.info.name, numeracy.info.name) == (f"spatial[{kind}]", f"numeracy[{kind}]")
    assert not spatial.info.exact
    assert kind in spatial.info.note
    assert spatial.detector is numeracy.detector  # one model for both
    result = RewardMix([Weighted(spatial)])(images, prompts(*["a cat on the left of a dog"] * 3))
    assert f"spatial[{kind}]" in result.scores
    assert result.valid.all()
    assert ((result.total >= 0) & (result.total <= 1)).all()
    result = numeracy(images, prompts(*["two cats and one dog"] * 3))
    assert set(result.total.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_3d_names_its_weights_by_digest(folders, images):
    reward = Spatial3DReward(f"owlv2={folders['owl']}", depth=folders["depth"], parser="builtin")
    assert reward(images, prompts(*["a cat behind a dog"] * 3)).valid.all()
    assert reward.info.name == "3d_spatial[owlv2+dpt-hybrid]"
    provenance = f"{reward.engine} {reward.weights}"
    assert provenance.count("sha256:") == 4
    assert folders["owl"] not in provenance
    assert folders["depth"] not in provenance


def complex_reward(folders):
    models = {"blip": folders["blip/model_base_vqa.pth"], "clip": folders["clip"]}
    return ComplexReward(f"owlv2={folders['owl']}", **models, parser="builtin")


def test_complex_prompts_take_the_parts_of_their_kind(folders, images):
    kinds, text = ("spatial", "action", "both"), "The red cat sat next to the green bench."
    rows = [Prompt(str(i), text, "t2i-compbench", {"relations": kind}) for i, kind in enumerate(kinds)]
    result = complex_reward(folders)(images, rows)
    model = BlipVQA(folders["blip/model_base_vqa.pth"])
    answers = model.p_yes(to_pil(images), [["the red cat?", "the green bench?"]] * 3)
    attribute = [float(attribute_score(row)) for row in answers]
    clip = ClipEncoder.load(folders["clip"])
    captions = ["The cat sat to the bench ."] * 3  # "next" is an adjective too
    action = paired_cosine(clip.images(images), clip.texts(captions)).tolist()
    spatial = result.scores["spatial"].tolist()
    assert result.scores["attribute"].tolist() == pytest.approx(attribute, abs=1e-4)
    assert result.scores["action"].tolist()[1:] == pytest.approx(action[1:], abs=1e-4)
    assert result.scores["action"].isnan().tolist() == [True, False, False]
    assert result.scores["spatial"].isnan().tolist() == [False, True, False]
    expected = (attribute[0] + spatial[0]) / 2, (attribute[1] + action[1]) / 2
    expected += ((attribute[2] + spatial[2] + action[2]) / 3,)
    assert result.total.tolist() == pytest.approx(expected, abs=1e-4)
    assert result.details[0]["objects"] == ["cat", "bench"]
    assert result.details[1]["kind"] == "action"


def test_prompts_that_cannot_be_scored_are_refused(scripted, folders):
    with pytest.raises(PromptError, match="no object to look for"):
        scripted(SpatialReward).check(prompts("running fast"))
    with pytest.raises(PromptError, match="counts no known object"):
        scripted(NumeracyReward).check(prompts("two ghosts"))
    with pytest.raises(PromptError, match=r"metadata\.relations must be one of spatial, action, both"):
        complex_reward(folders).check(prompts("The cat sat."))


def test_pictures_without_labels_are_not_passed_to_the_detector(images):
    detector = Scripted([detection("cat", 0.9, 16, 0, 32, 64)])
    framed = rewards.in_frame(detector, to_pil(images), [[], ["cat"], []])
    assert detector.labels == [["cat"]]
    assert [len(row) for row in framed] == [0, 1, 0]
    assert framed[1][0].box == pytest.approx((16 * 479 / 64, 0, 32 * 479 / 64, 479))


def test_a_picture_on_which_a_network_failed_is_invalid(scripted, folders, images):
    result = scripted(SpatialReward, NEAR, None, [])(images, prompts(*["a cat next to a girl"] * 3))
    assert result.valid.tolist() == [True, False, True]
    assert result.total.isnan().tolist() == [False, True, False]
    assert float(result.total[2]) == 0.0
    reward = scripted(Spatial3DReward, NEAR, NEAR, NEAR, depth=folders["depth"])
    maps = reward.depth(to_pil(images))
    reward.depth = lambda images: [maps[0], maps[1] * torch.nan, maps[2] * torch.nan]
    assert reward(images, prompts(*["a cat behind a girl"] * 3)).valid.tolist() == [True, False, False]
