"""ImageReward from a checkpoint with BLIP's original names, against BLIP's forward pass written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny_scorers import SIDE, WORDS, bert_words, clip_normalized, linear_head, pictures, pil

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.preference.imagereward import FILE, ImageRewardReward

TEXTS = ["a red cat on the left of a blue dog", "photo", "", "a red dog " * 20, "A Cat!"]
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(TEXTS)]
IMAGES = pictures(len(TEXTS))
SEEN, READ, HEADS = 192, 128, {192: 3, 128: 2}


def checkpoint(seed=0):
    """Random tensors under the names that ImageReward.pt has, unused ones included."""
    torch.manual_seed(seed)
    out = {
        "blip.visual_encoder.cls_token": torch.randn(1, 1, SEEN),
        "blip.visual_encoder.pos_embed": torch.randn(1, 17, SEEN),
        "blip.visual_encoder.patch_embed.proj.weight": torch.randn(SEEN, 3, 8, 8) * 0.1,
        "blip.visual_encoder.patch_embed.proj.bias": torch.randn(SEEN),
        "blip.text_encoder.embeddings.word_embeddings.weight": torch.randn(len(WORDS) + 2, READ),
        "blip.text_encoder.embeddings.position_embeddings.weight": torch.randn(40, READ),
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.randn(4, SEEN),
        "blip.vision_proj.bias": torch.randn(4),
        "blip.text_proj.weight": torch.randn(4, READ),
        "blip.text_proj.bias": torch.randn(4),
    }

    def linear(name, outputs, inputs):
        out[f"{name}.weight"], out[f"{name}.bias"] = torch.randn(outputs, inputs) * 0.1, torch.randn(outputs) * 0.1

    def norm(name, width):
        out[f"{name}.weight"], out[f"{name}.bias"] = 1 + torch.randn(width) * 0.1, torch.randn(width) * 0.1

    norm("blip.visual_encoder.norm", SEEN)
    norm("blip.text_encoder.embeddings.LayerNorm", READ)
    for n in range(2):
        eye = f"blip.visual_encoder.blocks.{n}"
        norm(f"{eye}.norm1", SEEN), norm(f"{eye}.norm2", SEEN)
        linear(f"{eye}.attn.qkv", 3 * SEEN, SEEN), linear(f"{eye}.attn.proj", SEEN, SEEN)
        linear(f"{eye}.mlp.fc1", 80, SEEN), linear(f"{eye}.mlp.fc2", SEEN, 80)
        mind = f"blip.text_encoder.encoder.layer.{n}"
        for kind, width in (("attention", READ), ("crossattention", SEEN)):
            linear(f"{mind}.{kind}.self.query", READ, READ)
            linear(f"{mind}.{kind}.self.key", READ, width), linear(f"{mind}.{kind}.self.value", READ, width)
            linear(f"{mind}.{kind}.output.dense", READ, READ), norm(f"{mind}.{kind}.output.LayerNorm", READ)
        linear(f"{mind}.intermediate.dense", 72, READ), linear(f"{mind}.output.dense", READ, 72)
        norm(f"{mind}.output.LayerNorm", READ)
    return out | {f"mlp.{name}": value for name, value in linear_head(READ).items()}


def attend(q, k, v, mask=None):
    heads = HEADS[q.shape[-1]]
    q, k, v = (x.unflatten(-1, (heads, 64)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / 8 + (0 if mask is None else mask)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Blip:
    """The forward pass of the BLIP repository's ViT and BERT, over tensors by their names."""

    def __init__(self, tensors):
        self.w = tensors

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def see(self, pixels):
        v = "blip.visual_encoder"
        patches = F.conv2d(pixels, self.w[f"{v}.patch_embed.proj.weight"], self.w[f"{v}.patch_embed.proj.bias"], 8)
        x = torch.cat([self.w[f"{v}.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self.w[f"{v}.pos_embed"]
        for n in range(2):
            b = f"{v}.blocks.{n}"
            q, k, w = self.linear(f"{b}.attn.qkv", self.norm(f"{b}.norm1", x, 1e-6)).chunk(3, dim=-1)
            x = x + self.linear(f"{b}.attn.proj", attend(q, k, w))
            x = x + self.linear(f"{b}.mlp.fc2", F.gelu(self.linear(f"{b}.mlp.fc1", self.norm(f"{b}.norm2", x, 1e-6))))
        return self.norm(f"{v}.norm", x, 1e-6)

    def read(self, ids, mask, vision):
        t = "blip.text_encoder"
        x = self.w[f"{t}.embeddings.word_embeddings.weight"][ids]
        x = x + self.w[f"{t}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm(f"{t}.embeddings.LayerNorm", x, 1e-12)
        hidden = (1 - mask[:, None, None, :].float()) * -10000
        for n in range(2):
            b = f"{t}.encoder.layer.{n}"
            for kind, source, cover in (("attention", None, hidden), ("crossattention", vision, None)):
                other = x if source is None else source
                a = f"{b}.{kind}.self"
                heard = attend(
                    self.linear(f"{a}.query", x),
                    self.linear(f"{a}.key", other),
                    self.linear(f"{a}.value", other),
                    cover,
                )
                x = self.norm(f"{b}.{kind}.output.LayerNorm", self.linear(f"{b}.{kind}.output.dense", heard) + x, 1e-12)
            inner = F.gelu(self.linear(f"{b}.intermediate.dense", x))
            x = self.norm(f"{b}.output.LayerNorm", self.linear(f"{b}.output.dense", inner) + x, 1e-12)
        return x[:, 0]

    @torch.no_grad()
    def reward(self, pixels, ids, mask):
        x = self.read(ids, mask, self.see(pixels))
        for n in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{n}", x)
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def tokens(text):
    """[CLS], words, [SEP], padded to 35; a long text is cut before its [SEP]."""
    words = [WORDS.index(w) if w in WORDS else 1 for w in text.lower().replace("!", " !").split()][:33]
    row = [2, *words, 3]
    return row + [0] * (35 - len(row)), [1] * len(row) + [0] * (35 - len(row))


def squares(images):
    rows = []
    for picture in map(pil, images):
        width = int(SIDE * picture.width / picture.height)
        left = round((width - SIDE) / 2)
        pixels = np.asarray(picture.resize((width, SIDE), Image.Resampling.BICUBIC))
        rows.append(clip_normalized(pixels[:, left : left + SIDE]))
    return torch.stack(rows)


@pytest.fixture
def folder(tmp_path):
    bert_words(tmp_path)
    torch.save(checkpoint(), tmp_path / FILE)
    return tmp_path


def load(folder, **options):
    return ImageRewardReward(str(folder), str(folder), device="cpu", **options)


def test_longer_prompts_are_counted(folder, caplog):
    load(folder).check([Prompt("p", " ".join("a" * count), "t") for count in (33, 34)])
    assert "reward imagereward reads 35 tokens of a prompt: the end of 1 of 2 prompts does not count" in caplog.text


def test_scores_are_those_of_blip(folder):
    result = load(folder, batch=2)(IMAGES, PROMPTS)
    ids, mask = zip(*map(tokens, TEXTS), strict=True)
    expected = Blip(checkpoint()).reward(squares(IMAGES), torch.tensor(ids), torch.tensor(mask))
    torch.testing.assert_close(result.total, expected, atol=1e-4, rtol=1e-4)
    assert result.valid.all()
    assert expected.std() > 0.1


BERT_WORDS = "blip.text_encoder.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "word"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", None, "1 missing"),
        ("blip.visual_encoder.pos_embed", None, "1 missing .first embeddings.position_embedding"),
        ("mlp.layers.7.weight", None, "1 missing .first layers.7.weight"),
        ("blip.itm_head.weight", torch.zeros(2), "1 unexpected .first blip.itm_head.weight"),
        ("blip.text_encoder.pooler.dense.weight", torch.zeros(2), "1 unexpected"),
        ("blip.visual_encoder.norm.weight", torch.zeros(2), "1 of another shape"),
        (BERT_WORDS, torch.zeros(len(WORDS) - 1, READ), "more than the model's 14"),
    ],
)
def test_wrong_checkpoints_are_one_clear_line(folder, name, tensor, word):
    tensors = {**checkpoint(), name: tensor}
    torch.save({n: t for n, t in tensors.items() if t is not None}, folder / FILE)
    with pytest.raises(ArtifactError, match=word) as error:
        load(folder)
    assert "\n" not in str(error.value)
