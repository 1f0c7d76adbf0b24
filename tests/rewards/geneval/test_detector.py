"""The GenEval detector around its network: pictures in, detections and colors out, against slow and obvious loops."""

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.mmdet_reference import TINY, mmcv1, random_reference
from support.tiny_scorers import SIDE, pictures, save_clip

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.prompts.clauses import COCO_CLASSES, GENEVAL_CLASSES
from flowopd_cli.rewards.geneval import detector as mask2former
from flowopd_cli.rewards.geneval.colors import ColorClassifier, cut_out
from flowopd_cli.rewards.geneval.detector import (
    DetectorSettings,
    Frame,
    Mask2FormerDetector,
    boxes_of,
    colored,
    fit,
    full_size,
    instances_of,
    measure,
    prepare,
)
from flowopd_cli.rewards.geneval.mmdet_weights import load_network
from flowopd_cli.rewards.geneval.reward import GenEvalHFReward, GenEvalReward
from flowopd_cli.rewards.geneval.rules import COLORS, Detection, GenEvalOptions, keep
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.scoring import centre_square


def prompt(tag, *clauses, **more):
    return Prompt(f"p-{tag}", "a prompt", "geneval", {"tag": tag, "include": list(clauses), **more})


def include(name, count=1, **more):
    return {"class": name, "count": count, **more}


def bilinear(plane, height, width):
    """Each pixel's centre mapped back, its four neighbours weighed, edges repeated."""
    old_height, old_width = plane.shape
    out = np.zeros((height, width))
    for i in range(height):
        y = max((i + 0.5) * old_height / height - 0.5, 0)
        top = int(y)
        below = min(top + 1, old_height - 1)
        for j in range(width):
            x = max((j + 0.5) * old_width / width - 0.5, 0)
            left = int(x)
            right = min(left + 1, old_width - 1)
            upper = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
            lower = plane[below, left] * (1 - (x - left)) + plane[below, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def test_classes_are_cocos_in_order_with_three_other_names():
    assert len(set(GENEVAL_CLASSES)) == len(COCO_CLASSES) == 80
    known = {0: "person", 13: "bench", 39: "bottle", 60: "dining table", 62: "tv", 79: "toothbrush"}
    known |= {64: "computer mouse", 65: "tv remote", 66: "computer keyboard", 67: "cell phone"}
    assert {i: GENEVAL_CLASSES[i] for i in known} == known


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((1024, 768), (1067, 800)),
        ((768, 1344), (762, 1333)),
        ((400, 1000), (533, 1333)),
        ((30, 20), (1200, 800)),
    ],
)
def test_pictures_are_fitted_into_1333_by_800(size, expected):
    assert fit(size) == expected


@pytest.mark.parametrize("size", [(10, 14), (50, 36), (9, 31)])
def test_preparing_is_resizing_rounding_normalising_padding(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    pixels, frame = prepare(image, short_side=24)
    assert frame.original == size
    assert frame.padded == tuple(-(-side // 32) * 32 for side in frame.resized)
    assert pixels.shape[-2:] == frame.padded
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel in range(3):
        grey = np.floor(image[0, channel].numpy() * 255 + 0.5)
        resized = bilinear(grey, *frame.resized)
        found = pixels[0, channel].numpy() * std[channel] * 255 + mean[channel] * 255
        inside = found[: frame.resized[0], : frame.resized[1]]
        assert np.abs(inside - np.round(inside)).max() < 1e-3
        assert np.abs(inside - resized).max() <= 0.51
    padding = pixels.clone()
    padding[..., : frame.resized[0], : frame.resized[1]] = 0
    assert padding.abs().max() == 0


@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (300, 500), (1000, 450)])
def test_the_resize_is_opencvs_within_one_grey_level(size):
    cv2 = pytest.importorskip("cv2")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels, frame = prepare(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    grey = pixels[0] * torch.tensor(mask2former.STD)[:, None, None] + torch.tensor(mask2former.MEAN)[:, None, None]
    grey = grey[:, : frame.resized[0], : frame.resized[1]].permute(1, 2, 0).numpy()
    theirs = cv2.resize(picture, frame.resized[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(grey - theirs).max() < 1.01


FRAME = Frame(original=(17, 25), resized=(24, 35), padded=(32, 64))


def slow_instances(classes, masks, frame):
    """Every pair of query and class, the hundred likeliest, each mask by loops."""
    pairs = []
    for q, logits in enumerate(classes.double()):
        odds = logits.exp() / logits.exp().sum()
        pairs += [(float(odds[c]), q, c) for c in range(len(odds) - 1)]
    found = []
    for odds, q, c in sorted(pairs, reverse=True)[:100]:
        padded = bilinear(masks[q].double().numpy(), *frame.padded)
        mask = bilinear(padded[: frame.resized[0], : frame.resized[1]], *frame.original)
        inside = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x] > 0]
        mean = sum(1 / (1 + np.exp(-mask[y, x])) for y, x in inside) / (len(inside) + 1e-6)
        rows, columns = [y for y, _ in inside], [x for _, x in inside]
        box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1) if inside else (0, 0, 0, 0)
        found.append((q, c, odds * mean, box))
    return found


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


def test_instances_are_those_of_the_slow_loops(logits):
    found = instances_of(*logits, FRAME)
    expected = slow_instances(*logits, FRAME)
    assert len(found.labels) == 100
    for (q, c, score, box), i in zip(expected, range(100), strict=True):
        assert (int(found.queries[i]), int(found.labels[i])) == (q, c)
        assert float(found.scores[i]) == pytest.approx(score, abs=1e-5)
        assert tuple(found.boxes[i].tolist()) == box
    assert len({int(q) for q in found.queries}) < 100, "a query may stand for several classes"
    assert 7 not in found.queries.tolist()
    empty = (found.queries == 3).nonzero().flatten()
    assert len(empty) > 0
    assert found.scores[empty].abs().max() == found.boxes[empty].abs().max() == 0


def test_the_portion_of_masks_at_a_time_changes_nothing(logits, monkeypatch):
    whole = instances_of(*logits, FRAME)
    assert len(list(mask2former._portions(logits[1], FRAME))) == 1
    monkeypatch.setattr(mask2former, "PIXELS_AT_ONCE", 1)
    for one, other in zip(whole, instances_of(*logits, FRAME), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_masks_are_cut_before_they_are_brought_to_size():
    """What lies in the padding does not reach the picture."""
    masks = torch.full((1, 8, 16), -1.0)
    masks[..., 10:] = 50.0
    assert full_size(masks, FRAME).max() < 0


def test_boxes_reach_one_beyond_the_last_pixel():
    inside = torch.zeros(3, 9, 11, dtype=torch.bool)
    inside[0, 2, 3] = True
    inside[1] = True
    assert boxes_of(inside).tolist() == [[3, 2, 4, 3], [0, 0, 11, 9], [0, 0, 0, 0]]
    quality, _ = measure(torch.where(inside, 2.0, -7.0))
    assert quality.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-2)), 0.0], abs=1e-5)


def detection(label, score, box=(0.0, 0.0, 4.0, 4.0)):
    return Detection(label, box, score)


def test_colors_are_asked_only_where_the_verdict_can_depend_on_them():
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
    seen = np.asarray(cut_out(picture, mask, (2.0, 1.0, 5.0, 4.0)))
    assert seen.shape == (3, 3, 3)
    assert (seen[0, 0] == picture[1, 2]).all()
    assert (seen[2, 2] == picture[3, 4]).all()
    assert (seen[0, 1] == 0x99).all()
    assert (seen == 0x99).all(axis=-1).sum() == 7


@pytest.mark.parametrize(("width", "height"), [(40, 40), (40, 63), (91, 40), (7, 12), (224, 224)])
def test_a_cut_out_is_made_square_as_clip_does(width, height):
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = min(width, height)
    large = Image.fromarray(noise).resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
    left, top = round((large.width - 32) / 2), round((large.height - 32) / 2)
    expected = np.asarray(large)[top : top + 32, left : left + 32]
    found = centre_square(Image.fromarray(noise), 32)
    assert found.size == (32, 32)
    assert (np.asarray(found) == expected).all()


class Encoder:
    """Unit vectors that are a function of the text, or of the picture, alone."""

    image_size = SIDE

    def texts(self, texts):
        return self.units(text.encode() for text in texts)

    def images(self, images):
        assert all(image.size == (SIDE, SIDE) for image in images)
        return self.units(image.tobytes() for image in images)

    def units(self, things):
        seeds = [zlib.crc32(thing) for thing in things]
        rows = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=-1)


def test_colors_are_the_nearest_of_ten_means_of_three_texts():
    encoder = Encoder()
    cutouts = to_pil(pictures(12))
    labels = ["car", "tv remote"] * 6
    found = ColorClassifier(encoder)(cutouts, labels)
    for cutout, label, color in zip(cutouts, labels, found, strict=True):
        seen = encoder.images([centre_square(cutout, SIDE)])[0]
        cosines = {}
        for c in COLORS:
            texts = [f"a photo of a {c} {label}", f"a photo of a {c}-colored {label}", f"a photo of a {c} object"]
            mean = sum(encoder.texts([text])[0] for text in texts) / 3
            cosines[c] = float(seen @ mean / mean.norm())
        assert color == max(cosines, key=cosines.get)
    assert len(set(found)) > 3
    assert ColorClassifier(encoder)([], []) == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmdet") / "tiny.pth"
    state = random_reference(TINY, seed=3).state_dict()
    for name in state:
        if "cls_embed" in name:
            state[name] = state[name] * 4
    torch.save({"meta": {"best": np.float64(1)}, "state_dict": mmcv1(state)}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    place = tmp_path_factory.mktemp("hf") / "tiny-instance"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWOPD_CACHE", str(place.parent))
        load_network(str(checkpoint), architecture=TINY).module.save_pretrained(place)
    return str(place)


LOW = {"threshold": 0.02, "counting_threshold": 0.02}


def asked(reward, images):
    """Prompts that ask for what the random detector sees, so that every clause has something to judge."""
    plain = [prompt("single_object", include("person"))] * len(images)
    seen = [list(keep(d, "colors", reward.options)) for d in reward.detector(images, plain)]
    assert all(len(labels) > 1 for labels in seen)
    made = []
    for i, (one, other, *_) in enumerate(seen):
        color = COLORS[i % len(COLORS)]
        choices = (
            prompt("single_object", include(one)),
            prompt("two_object", include(one), include(other)),
            prompt("counting", include(one, 2), exclude=[{"class": one, "count": 3}]),
            prompt("colors", include(one, color=color)),
            prompt("position", include(one), include(other, position=["left of", 0])),
            prompt("color_attr", include(one, color=color), include(other, color="red")),
        )
        made.append(choices[i % len(choices)])
    return made


def test_the_reward_runs_from_folders_to_verdicts_and_batches_change_nothing(folder, clip):
    options = {"weights": folder, "clip": clip, "short_side": 64, "device": "cpu", **LOW}
    rewards = [GenEvalReward(batch=batch, **options) for batch in (1, 5)]
    images = pictures(12, 48, 80)
    prompts = asked(rewards[0], images)
    one, many = (reward(images, prompts) for reward in rewards)
    assert one.valid.all()
    for name in ("training", "official", "strict"):
        torch.testing.assert_close(one.scores[name], many.scores[name], atol=1e-4, rtol=0)
    assert 0 < float(one.scores["official"].mean()) < 1
    for detail, again, asked_for in zip(one.details, many.details, prompts, strict=True):
        assert detail["reason"] == again["reason"]
        assert detail["found"], "the random detector sees something"
        wanted = {c["class"] for c in asked_for.metadata["include"] if "color" in c}
        given = {label for label, color, *_ in detail["found"] if color is not None}
        assert given == wanted
        assert all(0 <= x1 <= x2 <= 80 and 0 <= y1 <= y2 <= 48 for _, _, _, x1, y1, x2, y2 in detail["found"])
    assert rewards[0].info.exact is False
    assert "tiny-instance@64+" in one.details[0]["detector"]
    assert rewards[0].weights["clip"].startswith("sha256:"), "no path of this machine"


def test_a_checkpoint_of_mmdet_and_its_conversion_find_the_same(checkpoint, folder, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    images = pictures(2, 40, 40)
    prompts = [prompt("colors", include("car", color="red"))] * 2
    both = []
    for weights in (str(checkpoint), folder):
        settings = DetectorSettings(weights=weights, clip=clip, short_side=64, device="cpu")
        both.append(Mask2FormerDetector(settings, architecture=TINY)(images, prompts))
    for one, other in zip(*both, strict=True):
        assert [d.label for d in one] == [d.label for d in other]
        assert [d.box for d in one] == [d.box for d in other]
        assert len(one) == 100


def test_numbers_that_break_down_make_a_picture_invalid(folder, clip):
    reward = GenEvalHFReward(weights=folder, clip=clip, short_side=64, device="cpu")
    with torch.no_grad():
        reward.detector._network.class_predictor.bias.fill_(float("inf"))
    result = reward(pictures(2), [prompt("single_object", include("cat"))] * 2)
    assert not result.valid.any()
    assert "not finite" in result.details[0]["error"]


def test_half_precision_runs_and_says_so(folder, clip):
    options = {"weights": folder, "clip": clip, "short_side": 64, "device": "cpu", **LOW}
    reward = GenEvalReward(dtype="bfloat16", **options)
    result = reward(pictures(1), [prompt("single_object", include("cat"))])
    assert result.valid.all()
    assert "/bfloat16" in result.details[0]["detector"]


def test_prompts_for_what_nobody_can_find_are_refused(folder, clip):
    reward = GenEvalReward(weights=folder, clip=clip, device="cpu")
    reward.check([prompt("colors", include("tv remote", color="red"))])
    for clause, word in ((include("remote"), "tv remote"), (include("car", color="cyan"), "cyan")):
        with pytest.raises(PromptError, match=word):
            reward.check([prompt("colors", clause)])
    with pytest.raises(PromptError, match="no class 'mice'"):
        reward.check([prompt("counting", include("cat"), exclude=[{"class": "mice", "count": 2}])])


def test_missing_weights_are_one_line(folder, clip, tmp_path):
    with pytest.raises(ArtifactError, match="no such file of weights"):
        GenEvalReward(weights=str(tmp_path / "none.pth"), clip=clip)
    with pytest.raises(ArtifactError, match="no such folder"):
        GenEvalReward(weights=folder, clip=str(tmp_path / "none"))
