"""PickScore, CLIPScore and the aesthetic score on tiny CLIP folders, against one picture at a time by hand."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_scorers import TOKENS, clip_normalized, linear_head, pictures, pil, save_clip

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.rewards.preference.clip_scores import HEAD_FILE, AestheticReward, ClipScoreReward, PickScoreReward

TEXTS = ["a cat", "two dogs on the left of a red car, and far too many more words", "a cat", "", "blue"]
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(TEXTS)]
IMAGES = pictures(len(TEXTS))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return str(folder), save_clip(folder)


@torch.no_grad()
def cosines_by_hand(model, folder, texts, pixels):
    from transformers import CLIPTokenizer

    tokenizer, rows = CLIPTokenizer.from_pretrained(folder), []
    for text, pixel in zip(texts, pixels, strict=True):
        ids = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
        words = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output[0]
        picture = model.get_image_features(pixel_values=pixel[None]).pooler_output[0]
        rows.append(torch.nn.functional.cosine_similarity(words, picture, dim=0))
    return torch.stack(rows)


def pil_pixels(images, side=32, corner=lambda excess: excess // 2):
    """Shortest side by PIL's bicubic, the middle cut out, CLIP's mean and deviation."""
    rows = []
    for picture in map(pil, images):
        scale = side / min(picture.size)
        picture = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC)
        left = corner(picture.width - side)
        rows.append(clip_normalized(np.asarray(picture)[:, left : left + side]))
    return torch.stack(rows)


def test_pickscore_is_the_scaled_cosine_and_a_26th_of_it_to_train_on(clip):
    folder, model = clip
    reward = PickScoreReward(folder, device="cpu", batch=3)
    result = reward(IMAGES, PROMPTS)
    expected = cosines_by_hand(model, folder, TEXTS, pil_pixels(IMAGES)) * np.exp(2.0)
    torch.testing.assert_close(result.scores["raw"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.total, expected / 26, atol=1e-5, rtol=1e-4)
    assert result.valid.all()
    assert expected.std() > 0.1
    raw = PickScoreReward(folder, scale="raw", device="cpu")
    assert torch.equal(raw(IMAGES, PROMPTS).total, raw(IMAGES, PROMPTS).scores["raw"])
    assert raw.info.high == pytest.approx(26)
    assert reward.info.high == pytest.approx(1)


@pytest.mark.parametrize(
    ("variant", "prefix", "formula"),
    [
        ("t2i-compbench", "", lambda c: c),
        ("original", "A photo depicts ", lambda c: 2.5 * c.clamp(min=0)),
        ("cvtg-2k", "A photo depicts ", lambda c: 2.5 * c.clamp(min=0)),
    ],
)
def test_clipscore_variants(clip, variant, prefix, formula):
    """OpenAI's clip crops as torchvision: the corner is int(round(excess / 2)), here 2 of 3 and not 1."""
    folder, model = clip
    images = pictures(len(TEXTS), 32, 35)
    result = ClipScoreReward(variant, folder, device="cpu")(images, PROMPTS)
    texts = [(prefix + text).lower() for text in TEXTS]
    cosine = cosines_by_hand(model, folder, texts, pil_pixels(images, corner=lambda excess: round(excess / 2)))
    torch.testing.assert_close(result.scores["cosine"], cosine, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.total, formula(cosine), atol=1e-5, rtol=1e-4)


def test_the_flow_grpo_variant_shrinks_tensors_bilinearly(clip):
    """Downscaling by two with antialiasing is a triangle filter: weights 1, 3, 3, 1 over 8 inside the picture."""
    folder, model = clip
    images = pictures(2, 64, 64).mul(255).round() / 255
    result = ClipScoreReward("flow_grpo", folder, device="cpu")(images, PROMPTS[:2])
    kernel = torch.tensor([1.0, 3, 3, 1])

    def halve(rows):
        shares = [rows[..., max(0, 2 * i - 1) : 2 * i + 3] for i in range(32)]
        weights = [kernel[1:] if i == 0 else kernel[: s.shape[-1]] for i, s in enumerate(shares)]
        return torch.stack([(s * w).sum(-1) / w.sum() for s, w in zip(shares, weights, strict=True)], dim=-1)

    small = halve(halve(images).transpose(2, 3)).transpose(2, 3)
    pixels = torch.stack([clip_normalized(image.permute(1, 2, 0).numpy() * 255) for image in small])
    cosine = cosines_by_hand(model, folder, TEXTS[:2], pixels)
    torch.testing.assert_close(result.total, 100 * cosine / 30, atol=1e-4, rtol=1e-4)
    bicubic = ClipScoreReward("t2i-compbench", folder, device="cpu")(images, PROMPTS[:2]).scores["cosine"]
    assert (bicubic - cosine).abs().max() > 1e-4


@pytest.fixture
def head(tmp_path):
    path = tmp_path / HEAD_FILE
    torch.save(linear_head(24), path)
    return path


def test_aesthetic_is_the_linear_head_on_unit_vectors(clip, head):
    folder, model = clip
    with torch.no_grad():
        vectors = torch.cat([model.get_image_features(p[None]).pooler_output for p in pil_pixels(IMAGES)])
    tensors = linear_head(24)
    expected = vectors / vectors.norm(dim=-1, keepdim=True)
    for n in (0, 2, 4, 6, 7):
        expected = expected @ tensors[f"layers.{n}.weight"].T + tensors[f"layers.{n}.bias"]
    for source in (head, head.parent):
        result = AestheticReward(folder, str(source), device="cpu", batch=2)(IMAGES, PROMPTS)
        torch.testing.assert_close(result.total, expected[:, 0], atol=1e-4, rtol=1e-4)


def test_a_head_that_gives_no_number_makes_pictures_invalid(clip, head):
    torch.save(linear_head(24) | {"layers.7.bias": torch.tensor([float("nan")])}, head)
    result = AestheticReward(clip[0], str(head), device="cpu")(IMAGES, PROMPTS)
    assert not result.valid.any()
    assert torch.isnan(result.total).all()
    assert all("not a finite number" in detail["error"] for detail in result.details)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({k: v for k, v in linear_head(24).items() if k != "layers.4.bias"}, "missing"),
        (linear_head(24) | {"layers.9.weight": torch.zeros(1)}, "unexpected"),
        (linear_head(23), "of another shape"),
        (linear_head(24) | {"layers.2.bias": torch.zeros(3)}, "of another shape"),
        ([1, 2], "not named tensors"),
        (None, "no such file"),
    ],
)
def test_a_wrong_head_is_one_clear_line(clip, head, content, word):
    head.unlink()
    if content is not None:
        torch.save(content, head)
    with pytest.raises(ArtifactError, match=word) as error:
        AestheticReward(clip[0], str(head), device="cpu")
    assert "\n" not in str(error.value)


def test_local_weights_are_identified_by_their_digest_not_their_path(clip, tmp_path):
    copy = shutil.copytree(clip[0], tmp_path / "copy")
    here, there = (ClipScoreReward(source=str(folder), device="cpu").weights for folder in (clip[0], copy))
    assert here == there
    assert here["model"].startswith("sha256:")
    save_clip(copy, seed=9)
    assert ClipScoreReward(source=str(copy), device="cpu").weights != here


def test_unknown_options_are_named():
    with pytest.raises(RewardError, match="raw, train"):
        PickScoreReward(scale="percent")
    with pytest.raises(RewardError, match="t2i-compbench, flow_grpo, original"):
        ClipScoreReward("b32")


def test_prompts_that_are_longer_than_a_scorer_reads_are_counted(clip, caplog):
    """Each letter is a token, and two marks are around them."""
    folder, _ = clip
    texts = ["a" * (TOKENS - 2), "b" * (TOKENS - 1), "b" * (TOKENS - 1), "c" * TOKENS]
    PickScoreReward(folder, processor=folder).check([Prompt("p", text, "t") for text in texts])
    assert f"reads {TOKENS} tokens of a prompt: the end of 2 of 3 prompts does not count" in caplog.text
    assert f"the longest has {TOKENS + 2}" in caplog.text
    caplog.clear()
    PickScoreReward(folder, processor=folder).check([Prompt("p", texts[0], "t")])
    assert caplog.text == ""
    ClipScoreReward("original", folder).check([Prompt("p", texts[0], "t")])
    assert "reward clipscore reads" in caplog.text
