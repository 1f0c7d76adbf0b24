import pytest
import torch
from support.tiny_compbench import blip, save_depth, save_dino, save_original_blip, save_owl
from support.tiny_scorers import pictures, save_clip

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError, RewardError
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.compbench.blip_vqa import BlipVQA
from flowopd_cli.rewards.compbench.rewards import (
    ComplexReward,
    NumeracyReward,
    Spatial3DReward,
    SpatialReward,
    in_frame,
)
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
    return {name: str(root / name) for name in ("dino", "owl", "depth", "clip")} | {
        "blip": str(save_original_blip(root / "blip", blip()))
    }


@pytest.fixture
def images():
    return pictures(3, height=64, width=64)


def prompts(*texts, **metadata):
    return [Prompt(str(i), text, "t2i-compbench", metadata) for i, text in enumerate(texts)]


class Scripted:
    """Finds what it was told, and remembers what it was asked for."""

    name, engine = "scripted", "scripted/1"

    def __init__(self, *rows):
        self.rows, self.asked = rows, []

    def __call__(self, shown, wanted):
        self.asked += [list(mine) for mine in wanted]
        return [row and list(row) for row in self.rows[: len(shown)]]


def place(label, score, *box):
    return Detection(label, tuple(float(edge) for edge in box), score)


@pytest.fixture
def judged(folders):
    """A spatial or counting reward whose detector is replaced by a scripted one."""

    def make(kind, *rows, **options):
        reward = kind(f"grounding-dino={folders['dino']}", parser="builtin", **options)
        getattr(reward, "plane", reward).detector = Scripted(*rows)
        return reward

    return make


def test_spatial_scores_follow_the_rule_in_the_detectors_frame(judged, images):
    """A picture of 64 pixels becomes 479: 20 pixels are 149.7, near; 21 are 157.2, on both axes not."""
    near = [place("cat", 0.8, 0, 0, 10, 10), place("person", 0.6, 20, 30, 30, 40)]
    far = [place("cat", 0.8, 0, 0, 10, 10), place("person", 0.6, 21, 30, 31, 40)]
    reward = judged(SpatialReward, near, far, near)
    texts = ("a cat next to a girl", "a cat next to a girl", "a cat on the right of a girl")
    result = reward(images, prompts(*texts))
    wanted = [0.35 + 0.5, 0.35 + 0.5 * 150 / (30 * 479 / 64), 0.0]
    assert result.total.tolist() == pytest.approx(wanted, abs=1e-6)
    assert reward.detector.asked == [["cat", "person"]] * 3
    detail = result.details[0]
    assert detail["objects"] == ["cat", "person"]
    assert detail["relation"] == "next to"
    assert detail["found"][0][:2] == ["cat", 0.8]


def test_depth_decides_who_is_in_front(judged, folders, images):
    reward = judged(Spatial3DReward, [place("cat", 0.8, 0, 0, 32, 32), place("dog", 0.6, 4, 0, 36, 32)],
                    depth=folders["depth"])  # fmt: skip
    near_left = torch.zeros(479, 479)
    near_left[:30] = 1.0  # rows are x in the official crop
    reward.depth = lambda shown: [near_left for _ in shown]
    front = reward(images[:1], prompts("a cat in front of a dog"))
    behind = reward(images[:1], prompts("a cat behind a dog"))
    assert front.total.tolist() == pytest.approx([0.35 + 0.5])
    assert behind.total.tolist() == pytest.approx([0.35])


def test_numeracy_counts_what_the_prompt_counts(judged, images):
    two = [place("dog", 0.9, 0, 0, 20, 20), place("dog", 0.8, 30, 0, 50, 20)]
    reward = judged(NumeracyReward, two, two, [])
    result = reward(images, prompts("two dogs", "two dogs and three ships", "one goldfish"))
    assert result.total.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert reward.detector.asked == [["dog"], ["dog", "boat"], ["fish"]]
    assert result.details[1]["wanted"] == [["dog", 2], ["boat", 3]]


@pytest.mark.parametrize(("kind", "folder"), [("grounding-dino", "dino"), ("owlv2", "owl")])
def test_names_say_which_detector_judged(folders, images, kind, folder):
    spec = f"{kind}={folders[folder]}"
    spatial = SpatialReward(spec, parser="builtin")
    numeracy = NumeracyReward(spec, parser="builtin")
    assert spatial.info.name == f"spatial[{kind}]"
    assert numeracy.info.name == f"numeracy[{kind}]"
    assert not spatial.info.exact
    assert kind in spatial.info.note
    assert spatial.detector is numeracy.detector  # one model for both
    result = RewardMix([Weighted(spatial)])(images, prompts(*["a cat on the left of a dog"] * 3))
    assert f"spatial[{kind}]" in result.scores
    assert result.valid.all()
    assert ((result.total >= 0) & (result.total <= 1)).all()
    counted = numeracy(images, prompts(*["two cats and one dog"] * 3))
    assert set(counted.total.tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_3d_runs_end_to_end_whatever_the_batch(folders, images):
    options = {"depth": folders["depth"], "parser": "builtin"}
    asked = prompts(*["a cat behind a dog"] * 3)
    results = []
    for batch in (1, 8):
        reward = Spatial3DReward(f"owlv2={folders['owl']}", batch=batch, **options)
        results.append(reward(images, asked).total)
    assert torch.allclose(*results, atol=1e-4)
    assert reward.info.name == "3d_spatial[owlv2+dpt-hybrid]"
    told = f"{reward.engine} {reward.weights}"
    assert told.count("sha256:") == 4
    assert folders["owl"] not in told
    assert folders["depth"] not in told, "no path of this machine"


def complex_reward(folders, detector="owl", batch=8):
    kind = {"owl": "owlv2", "dino": "grounding-dino"}[detector]
    return ComplexReward(
        f"{kind}={folders[detector]}", blip=folders["blip"], clip=folders["clip"], parser="builtin", batch=batch
    )


def test_complex_prompts_take_the_parts_that_their_kind_asks(folders, images):
    reward = complex_reward(folders)
    text = "The red cat sat next to the green bench."
    asked = [
        Prompt(str(i), text, "t2i-compbench", {"relations": kind})
        for i, kind in enumerate(("spatial", "action", "both"))
    ]
    result = reward(images, asked)
    shown = to_pil(images)
    spoken = ["the red cat?", "the green bench?"]
    answers = BlipVQA.load(folders["blip"]).p_yes(shown, [spoken] * 3)
    attribute = [float(attribute_score(row)) for row in answers]
    clip = ClipEncoder.load(folders["clip"])
    plain = ["The cat sat to the bench ."] * 3  # "next" is an adjective too
    action = paired_cosine(clip.images(images), clip.texts(plain))
    assert result.scores["attribute"].tolist() == pytest.approx(attribute, abs=1e-4)
    assert result.scores["action"].tolist()[1:] == pytest.approx(action.tolist()[1:], abs=1e-4)
    spatial = result.scores["spatial"]
    assert torch.isnan(result.scores["action"][0])
    assert torch.isnan(spatial[1])
    wanted = [
        (attribute[0] + float(spatial[0])) / 2,
        (attribute[1] + float(action[1])) / 2,
        (attribute[2] + float(spatial[2]) + float(action[2])) / 3,
    ]
    assert result.total.tolist() == pytest.approx(wanted, abs=1e-4)
    assert result.details[0]["objects"] == ["cat", "bench"]
    assert result.details[1]["kind"] == "action"


def test_complex_scores_do_not_depend_on_the_batch(folders, images):
    asked = prompts(*["The red cat was on top of the bench."] * 3, relations="both")
    one, eight = (complex_reward(folders, "dino", batch)(images, asked) for batch in (1, 8))
    assert torch.allclose(one.total, eight.total, atol=2e-4)
    assert one.valid.all()


def test_prompts_that_cannot_be_judged_are_refused(judged, folders):
    with pytest.raises(PromptError, match="no object to look for"):
        judged(SpatialReward).check(prompts("running fast"))
    with pytest.raises(PromptError, match="no object to look for"):
        judged(Spatial3DReward, depth=folders["depth"]).check(prompts("behind"))
    with pytest.raises(PromptError, match="counts no known object"):
        judged(NumeracyReward).check(prompts("two ghosts"))
    with pytest.raises(PromptError, match=r"metadata\.relations must be one of spatial, action, both"):
        complex_reward(folders).check(prompts("The cat sat."))


def test_wrong_detectors_are_refused(tmp_path):
    with pytest.raises(RewardError, match="detector 'yolo'"):
        SpatialReward("yolo")
    with pytest.raises(ArtifactError, match="no such folder"):
        SpatialReward(f"owlv2={tmp_path / 'none'}")


def test_pictures_without_a_question_are_not_looked_at(images):
    detector = Scripted([place("cat", 0.9, 16, 0, 32, 64)])
    found = in_frame(detector, to_pil(images), [[], ["cat"], []])
    assert detector.asked == [["cat"]]
    assert [len(row) for row in found] == [0, 1, 0]
    assert found[1][0].box == pytest.approx((16 * 479 / 64, 0, 32 * 479 / 64, 479))


def test_a_picture_that_the_detector_could_not_look_at_is_invalid(judged, images):
    seen = [place("cat", 0.8, 0, 0, 10, 10), place("person", 0.6, 20, 30, 30, 40)]
    result = judged(SpatialReward, seen, None, [])(images, prompts(*["a cat next to a girl"] * 3))
    assert result.valid.tolist() == [True, False, True]
    assert result.total.isnan().tolist() == [False, True, False]
    assert float(result.total[2]) == 0.0


def test_depth_that_is_no_number_is_no_score(judged, folders, images):
    seen = [place("cat", 0.8, 0, 0, 10, 10), place("person", 0.6, 20, 30, 30, 40)]
    reward = judged(Spatial3DReward, seen, seen, seen, depth=folders["depth"])
    maps = reward.depth(to_pil(images))
    reward.depth = lambda shown: [maps[0], maps[1] * torch.nan, maps[2] * torch.nan]
    assert reward(images, prompts(*["a cat behind a girl"] * 3)).valid.tolist() == [True, False, False]
