"""HPSv2.1 from a checkpoint with open_clip's names, against open_clip's forward pass written out."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny_scorers import SIDE, clip_config, clip_normalized, clip_words, pictures, pil, save_clip, shaken

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.preference.hpsv2 import FILE, HPSv2Reward

TEXTS = ["a cat", "a red dog, with far too many letters", "", "blue", "a cat"]
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(TEXTS)]
IMAGES = pictures(len(TEXTS))


def open_clip_names(model):
    """The tensors of a CLIPModel as open_clip would have saved them: a map of its own, written the other way round."""
    s = model.state_dict()
    out = {
        "logit_scale": s["logit_scale"],
        "positional_embedding": s["text_model.embeddings.position_embedding.weight"],
        "text_projection": s["text_projection.weight"].T.contiguous(),
        "token_embedding.weight": s["text_model.embeddings.token_embedding.weight"],
        "visual.class_embedding": s["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": s["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": s["visual_projection.weight"].T.contiguous(),
        "visual.conv1.weight": s["vision_model.embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = s[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = s[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = s[f"vision_model.post_layernorm.{kind}"]
        for ours, theirs in (("text_model", ""), ("vision_model", "visual.")):
            for n in range(2):
                a, b = f"{ours}.encoder.layers.{n}", f"{theirs}transformer.resblocks.{n}"
                qkv = [s[f"{a}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                out[f"{b}.attn.in_proj_{kind}"] = torch.cat(qkv)
                out[f"{b}.attn.out_proj.{kind}"] = s[f"{a}.self_attn.out_proj.{kind}"]
                out[f"{b}.ln_1.{kind}"] = s[f"{a}.layer_norm1.{kind}"]
                out[f"{b}.ln_2.{kind}"] = s[f"{a}.layer_norm2.{kind}"]
                out[f"{b}.mlp.c_fc.{kind}"] = s[f"{a}.mlp.fc1.{kind}"]
                out[f"{b}.mlp.c_proj.{kind}"] = s[f"{a}.mlp.fc2.{kind}"]
    return {name: value.clone() for name, value in out.items()}


def block(w, prefix, x, mask):
    """A residual block of open_clip, with torch's own attention."""
    attention = torch.nn.MultiheadAttention(x.shape[-1], 2, batch_first=True)
    attention.load_state_dict({n: w[f"{prefix}.attn.{n}"] for n in attention.state_dict()})
    h = F.layer_norm(x, x.shape[-1:], w[f"{prefix}.ln_1.weight"], w[f"{prefix}.ln_1.bias"])
    x = x + attention(h, h, h, need_weights=False, attn_mask=mask)[0]
    h = F.layer_norm(x, x.shape[-1:], w[f"{prefix}.ln_2.weight"], w[f"{prefix}.ln_2.bias"])
    h = F.gelu(F.linear(h, w[f"{prefix}.mlp.c_fc.weight"], w[f"{prefix}.mlp.c_fc.bias"]))
    return x + F.linear(h, w[f"{prefix}.mlp.c_proj.weight"], w[f"{prefix}.mlp.c_proj.bias"])


@torch.no_grad()
def see(w, pixels):
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], w["visual.ln_pre.weight"], w["visual.ln_pre.bias"])
    for n in range(2):
        x = block(w, f"visual.transformer.resblocks.{n}", x, None)
    x = F.layer_norm(x[:, 0], x.shape[-1:], w["visual.ln_post.weight"], w["visual.ln_post.bias"])
    return F.normalize(x @ w["visual.proj"], dim=-1)


@torch.no_grad()
def read(w, ids):
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: ids.shape[1]]
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    for n in range(2):
        x = block(w, f"transformer.resblocks.{n}", x, mask)
    x = F.layer_norm(x, x.shape[-1:], w["ln_final.weight"], w["ln_final.bias"])
    return F.normalize(x[torch.arange(len(x)), ids.argmax(-1)] @ w["text_projection"], dim=-1)


def padded(images):
    """hpsv2 1.2.0's transform of pictures wider than high: the longest side becomes 32, black around."""
    rows = []
    for picture in map(pil, images):
        height = round(picture.height * SIDE / picture.width)
        canvas = np.zeros((SIDE, SIDE, 3))
        top = (SIDE - height) // 2
        canvas[top : top + height] = bicubic(np.asarray(picture, float), height, SIDE)
        rows.append(clip_normalized(canvas))
    return torch.stack(rows)


def bicubic(pixels, height, width):
    """Keys' cubic filter (a = -1/2), widened by the scale when reducing, its weights summing to 1; nothing rounded."""
    for axis, size in ((0, height), (1, width)):
        old = pixels.shape[axis]
        widening = max(old / size, 1)
        matrix = np.zeros((size, old))
        for i in range(size):
            for j in range(old):
                x = abs(j + 0.5 - (i + 0.5) * old / size) / widening
                inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
                matrix[i, j] = inner if x < 1 else outer if x < 2 else 0
            matrix[i] /= matrix[i].sum()
        pixels = np.moveaxis(np.tensordot(matrix, pixels, (1, axis)), 0, axis)
    return pixels


@pytest.fixture
def folders(tmp_path):
    """The base's folder without weights, the checkpoint's folder, and the checkpoint's tensors."""
    from transformers import CLIPModel

    base, source = tmp_path / "base", tmp_path / "hps"
    save_clip(base, weights=False)
    source.mkdir()
    tensors = open_clip_names(shaken(CLIPModel(clip_config(clip_words(tmp_path / "words"))), 5))
    torch.save({"epoch": 1, "state_dict": tensors}, source / FILE)
    return base, source, tensors


def test_longer_prompts_are_counted(folders, caplog):
    base, source, _ = folders
    HPSv2Reward(str(source), str(base), device="cpu").check([Prompt("p", "a " * 200, "t")])
    assert "reward hpsv2 reads" in caplog.text


def test_scores_are_those_of_open_clip(folders):
    base, source, tensors = folders
    reward = HPSv2Reward(str(source), str(base), device="cpu", batch=2)
    result = reward(IMAGES, PROMPTS)
    ids = [reward.encoder._tokenizer(text, truncation=True, max_length=16).input_ids for text in TEXTS]
    rows = torch.tensor([row + [0] * (16 - len(row)) for row in ids])
    expected = (see(tensors, padded(IMAGES)) * read(tensors, rows)).sum(-1)
    torch.testing.assert_close(result.total, expected, atol=1e-5, rtol=1e-4)
    assert result.valid.all()
    assert expected.std() > 0.01


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((64, 64), (0, 0, 32, 32)),
        ((64, 32), (0, 8, 32, 24)),
        ((10, 40), (12, 0, 20, 32)),
        ((32, 15), (0, 8, 32, 23)),  # not resized
        ((8, 7), (0, 2, 32, 30)),
        ((700, 1), (0, 15, 32, 16)),
    ],
)
def test_pictures_are_resized_without_rounding_in_a_black_square(folders, size, box):
    base, source, _ = folders
    noise = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3)).astype(np.uint8) * 255
    (pixels,) = HPSv2Reward(str(source), str(base), device="cpu").encoder.pixels([Image.fromarray(noise)])
    left, top, right, bottom = box
    expected = np.zeros((SIDE, SIDE, 3))
    expected[top:bottom, left:right] = bicubic(noise.astype(float), bottom - top, right - left)
    torch.testing.assert_close(pixels, clip_normalized(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor", "word"),
    [
        ("visual.proj", None, "1 missing .first visual_projection.weight"),
        ("transformer.resblocks.1.attn.in_proj_bias", None, "3 missing"),
        ("visual.extra", torch.zeros(1), "1 unexpected .first visual.extra"),
        ("transformer.resblocks.0.attn.odd", torch.zeros(1), "1 unexpected"),
        ("transformer.resblocks.2.ln_1.weight", torch.zeros(20), "1 unexpected"),
        ("visual.conv1.weight", torch.zeros(28, 3, 4, 4), "1 of another shape"),
        ("transformer.resblocks.0.attn.in_proj_weight", torch.zeros(4, 20), "of another shape"),
    ],
)
def test_wrong_checkpoints_are_one_clear_line(folders, name, tensor, word):
    base, source, tensors = folders
    changed = {n: t for n, t in {**tensors, name: tensor}.items() if t is not None}
    torch.save({"state_dict": changed}, source / FILE)
    with pytest.raises(ArtifactError, match=word) as error:
        HPSv2Reward(str(source), str(base), device="cpu")
    assert "\n" not in str(error.value)


def test_missing_files(folders, tmp_path):
    base, source, _ = folders
    shutil.copy(base / "config.json", tmp_path)
    for arguments, word in (
        ((tmp_path / "none", base), "no such file or folder"),
        ((base, base), f"no file {FILE}"),
        ((source, source), r"no file config\.json"),
        ((source, tmp_path), "no tokenizer with a vocabulary"),
    ):
        with pytest.raises(ArtifactError, match=word) as error:
            HPSv2Reward(*map(str, arguments), device="cpu")
        assert "\n" not in str(error.value)
