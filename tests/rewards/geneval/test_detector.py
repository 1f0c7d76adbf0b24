"""The GenEval detector around its network: pictures in, detections and colors out, against slow and obvious loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.mmdet_reference import TINY, mmcv1, random_reference
from support.tiny_scorers import SIDE, pictures, save_clip

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.clauses import COCO_CLASSES, GENEVAL_CLASSES
from flowopd_cli.rewards.geneval import detector as mask2former
from flowopd_cli.rewards.geneval.detector import (
    ColorClassifier,
    Frame,
    colored,
    cut_out,
    instances_of,
    prepare,
)
from flowopd_cli.rewards.geneval.mmdet_weights import load_network
from flowopd_cli.rewards.geneval.reward import GenEvalHFReward, GenEvalReward
from flowopd_cli.rewards.geneval.rules import COLORS, Detection, GenEvalOptions, keep
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import ClipEncoder
from flowopd_cli.rewards.preference.scoring import centre_square


def prompt(tag, *clauses, **more):
    return Prompt(f"p-{tag}", "a prompt", "geneval", {"tag": tag, "include": list(clauses), **more})


def include(name, count=1, **more):
    return {"class": name, "count": count, **more}


def interpolation(old, new):
    """A matrix (new, old): each pixel's centre mapped back, its two neighbours weighted, edges repeated."""
    position = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    left = position.astype(int)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), left), 1 - (position - left))
    np.add.at(matrix, (np.arange(new), np.minimum(left + 1, old - 1)), position - left)
    return matrix


def bilinear(plane, height, width):
    return interpolation(plane.shape[0], height) @ plane @ interpolation(plane.shape[1], width).T


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return str(folder)


def test_classes_are_cocos_in_order_with_three_other_names():
    assert len(set(GENEVAL_CLASSES)) == len(COCO_CLASSES) == 80
    known = {0: "person", 13: "bench", 39: "bottle", 60: "dining table", 62: "tv", 79: "toothbrush"}
    known |= {64: "computer mouse", 65: "tv remote", 66: "computer keyboard", 67: "cell phone"}
    assert {i: GENEVAL_CLASSES[i] for i in known} == known


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (800, 800)),
        ((1024, 768), (1067, 800)),
        ((768, 1344), (762, 1333)),
        ((400, 1000), (533, 1333)),
        ((30, 20), (1200, 800)),
    ],
)
def test_pictures_are_fitted_into_1333_by_800(size, expected):
    assert prepare(torch.zeros(1, 3, *size))[1].resized == expected


@pytest.mark.parametrize("size", [(10, 14), (50, 36), (9, 31)])
def test_preparing_is_resizing_rounding_normalizing_padding(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    pixels, frame = prepare(image, short_side=24)
    assert frame.original == size
    assert pixels.shape[-2:] == frame.padded == tuple(-(-side // 32) * 32 for side in frame.resized)
    height, width = frame.resized
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        resized = bilinear(np.floor(image[0, channel].numpy() * 255 + 0.5), height, width)
        grey = (pixels[0, channel].numpy() * std + mean)[:height, :width] * 255
        assert np.abs(grey - np.round(grey)).max() < 1e-3
        assert np.abs(grey - resized).max() <= 0.51
    pixels[..., :height, :width] = 0
    assert pixels.abs().max() == 0


FRAME = Frame(original=(17, 25), resized=(24, 35), padded=(32, 64))


def slow_instances(classes, masks, frame):
    """Every pair of query and class, the hundred likeliest, each mask by loops."""
    odds = classes.double().softmax(-1)[:, :-1]
    pairs = [(float(odds[q, c]), q, c) for q in range(len(odds)) for c in range(odds.shape[1])]
    instances = []
    for probability, q, c in sorted(pairs, reverse=True)[:100]:
        padded = bilinear(masks[q].double().numpy(), *frame.padded)
        mask = bilinear(padded[: frame.resized[0], : frame.resized[1]], *frame.original)
        rows, columns = np.nonzero(mask > 0)
        mean = sum(1 / (1 + np.exp(-mask[mask > 0]))) / (len(rows) + 1e-6)
        box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1) if len(rows) else (0, 0, 0, 0)
        instances.append((q, c, probability * mean, box))
    return instances


@pytest.fixture(scope="module")
def logits():
    """Twelve queries, one of them without a mask, one sure that there is no object."""
    generator = torch.Generator().manual_seed(5)
    classes = torch.randn(12, 81, generator=generator) * 2
    coarse = torch.randn(1, 12, 3, 5, generator=generator) * 3
    masks = F.interpolate(coarse, (8, 16), mode="bilinear")[0]
    masks[3] = -4.0
    classes[7, 80] = 30.0
    return classes, masks


@pytest.mark.parametrize("pixels_at_once", [mask2former.PIXELS_AT_ONCE, 1])
def test_instances_are_those_of_the_slow_loops(logits, monkeypatch, pixels_at_once):
    monkeypatch.setattr(mask2former, "PIXELS_AT_ONCE", pixels_at_once)
    instances = instances_of(*logits, FRAME)
    for row, (q, c, score, box) in zip(zip(*instances, strict=True), slow_instances(*logits, FRAME), strict=True):
        label, query, actual_score, actual_box = row
        assert (int(query), int(label)) == (q, c)
        assert float(actual_score) == pytest.approx(score, abs=1e-5)
        assert tuple(actual_box.tolist()) == box
    assert len(set(instances.queries.tolist())) < 100, "a query may stand for several classes"
    assert 7 not in instances.queries.tolist()
    empty = instances.queries == 3
    assert empty.any()
    assert instances.scores[empty].abs().max() == instances.boxes[empty].abs().max() == 0


def detection(label, score, box=(0.0, 0.0, 4.0, 4.0)):
    return Detection(label, box, score)


def test_only_detections_that_decide_the_verdict_get_a_color():
    detections = [detection("car", 0.5), detection("cat", 0.9), detection("car", 0.8), detection("car", 0.2)]
    assert colored(detections, prompt("colors", include("car", color="red"))) == [2]
    assert colored(detections, prompt("colors", include("car", 2, color="red"))) == [2, 0]
    assert colored(detections, prompt("colors", include("car", 3, color="red"))) == []
    assert colored(detections, prompt("counting", include("car", color="red"))) == []
    assert colored(detections, prompt("single_object", include("car"))) == []
    both = prompt("color_attr", include("cat", color="red"), include("car", color="blue"))
    assert colored(detections, both) == [1, 2]
    assert colored(detections, both, GenEvalOptions(threshold=0.85)) == [1]
    assert colored([detection("car", 0.9, (0, 0, 0, 0))], prompt("colors", include("car", color="red"))) == []


def test_a_cut_out_is_grey_outside_its_mask_and_cropped_to_its_box():
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 2] = mask[3, 4] = True
    expected = np.full((3, 3, 3), 0x99)
    expected[0, 0], expected[2, 2] = picture[1, 2], picture[3, 4]
    assert (np.asarray(cut_out(picture, mask, (2.0, 1.0, 5.0, 4.0))) == expected).all()


@pytest.mark.parametrize(("width", "height"), [(40, 63), (91, 40), (7, 12), (224, 224)])
def test_a_cut_out_is_cropped_to_a_square_as_in_clip(width, height):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    short = min(width, height)
    large = noise.resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
    left, top = round((large.width - 32) / 2), round((large.height - 32) / 2)
    expected = np.asarray(large)[top : top + 32, left : left + 32]
    assert (np.asarray(centre_square(noise, 32)) == expected).all()


def test_colors_are_the_nearest_of_ten_means_of_three_texts(clip):
    encoder = ClipEncoder.load(clip, device="cpu")
    cutouts, labels = to_pil(pictures(12)), ["car", "tv remote"] * 6
    for cutout, label, color in zip(cutouts, labels, ColorClassifier(encoder)(cutouts, labels), strict=True):
        vector = encoder.images([centre_square(cutout, SIDE)])[0]
        cosines = {}
        for c in COLORS:
            texts = [f"a photo of a {c} {label}", f"a photo of a {c}-colored {label}", f"a photo of a {c} object"]
            mean = encoder.texts(texts).mean(dim=0)
            cosines[c] = float(vector @ mean / mean.norm())
        assert cosines[color] == pytest.approx(max(cosines.values()), abs=1e-5)
    assert ColorClassifier(encoder)([], []) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmdet") / "tiny.pth"
    state = random_reference(TINY, seed=3).state_dict()
    state |= {name: tensor * 4 for name, tensor in state.items() if "cls_embed" in name}
    torch.save({"meta": {"best": np.float64(1)}, "state_dict": mmcv1(state)}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny-instance"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWOPD_CACHE", str(path.parent))
        load_network(str(checkpoint), architecture=TINY).module.save_pretrained(path)
    return str(path)


@pytest.fixture
def options(folder, clip):
    return {"weights": folder, "clip": clip, "short_side": 64, "device": "cpu"}


def matching_prompts(reward, images):
    """Prompts about what the random detector detects, so that every clause has something to judge."""
    plain = [prompt("single_object", include("person"))] * len(images)
    labels = [list(keep(d, "colors", reward.options)) for d in reward.detector(images, plain)]
    prompts = []
    for i, (one, other, *_) in enumerate(labels):
        color = COLORS[i % len(COLORS)]
        choices = (
            prompt("single_object", include(one)),
            prompt("two_object", include(one), include(other)),
            prompt("counting", include(one, 2), exclude=[{"class": one, "count": 3}]),
            prompt("colors", include(one, color=color)),
            prompt("position", include(one), include(other, position=["left of", 0])),
            prompt("color_attr", include(one, color=color), include(other, color="red")),
        )
        prompts.append(choices[i % len(choices)])
    return prompts


def test_the_reward_runs_from_folders_to_verdicts_and_batches_change_nothing(options):
    thresholds = {"threshold": 0.02, "counting_threshold": 0.02}
    rewards = [GenEvalReward(batch=batch, **options, **thresholds) for batch in (1, 5)]
    images = pictures(12, 48, 80)
    prompts = matching_prompts(rewards[0], images)
    one, many = (reward(images, prompts) for reward in rewards)
    assert one.valid.all()
    for name in ("training", "official", "strict"):
        torch.testing.assert_close(one.scores[name], many.scores[name], atol=1e-4, rtol=0)
    assert 0 < float(one.scores["official"].mean()) < 1
    for detail, other, source in zip(one.details, many.details, prompts, strict=True):
        assert detail["reason"] == other["reason"]
        assert detail["found"], "the random detector detects something"
        expected = {c["class"] for c in source.metadata["include"] if "color" in c}
        assert {label for label, color, *_ in detail["found"] if color is not None} == expected
        assert all(0 <= x1 <= x2 <= 80 and 0 <= y1 <= y2 <= 48 for _, _, _, x1, y1, x2, y2 in detail["found"])
    assert rewards[0].info.exact is False
    assert "tiny-instance@64+" in one.details[0]["detector"]
    assert rewards[0].weights["clip"].startswith("sha256:"), "no local path"
    half = GenEvalReward(dtype="bfloat16", **options)(images[:1], prompts[:1])
    assert half.valid.all()
    assert "/bfloat16" in half.details[0]["detector"]


def test_output_that_is_not_finite_makes_a_picture_invalid(options):
    reward = GenEvalHFReward(**options)
    with torch.no_grad():
        reward.detector._network.class_predictor.bias.fill_(float("inf"))
    result = reward(pictures(2), [prompt("single_object", include("cat"))] * 2)
    assert not result.valid.any()
    assert "not finite" in result.details[0]["error"]


def test_prompts_with_unknown_classes_or_colors_are_refused(options):
    reward = GenEvalReward(**options)
    reward.check([prompt("colors", include("tv remote", color="red"))])
    unknown = [include("remote")], [include("car", color="cyan")], [include("cat"), include("mice")]
    for clauses, word in zip(unknown, ("tv remote", "cyan", "no class 'mice'"), strict=True):
        with pytest.raises(PromptError, match=word):
            reward.check([prompt("colors", *clauses[:1], exclude=clauses[1:])])
