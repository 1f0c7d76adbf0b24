"""HPSv3 from a checkpoint with its published names, against the reference's steps written out."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from support.tiny_qwen_vl import INSTRUCTION, publish_instruction, save_hpsv3
from support.tiny_scorers import pictures, pil

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError, RewardError
from flowopd_cli.rewards.preference.hpsv3 import FILE, PIXELS, HPSv3Reward
from flowopd_cli.rewards.remote.protocol import prompt_record
from flowopd_cli.rewards.remote.worker import load_scorer

TEXTS = ["a red cat on the left of a blue dog", "{photo} \\n {text_prompt}", "", "ein Schild: „Tür“ " * 4, "a cat"]
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(TEXTS)]
IMAGES = pictures(len(TEXTS))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with base and checkpoint, the model in it and the checkpoint's tensors."""
    folder = tmp_path_factory.mktemp("hpsv3")
    return folder, *save_hpsv3(folder)


@pytest.fixture
def instructed(monkeypatch, tmp_path):
    publish_instruction(monkeypatch, tmp_path / "cache")


def load(folder, **options):
    return HPSv3Reward(**{"source": str(folder), "base": str(folder), "dtype": "float32", "device": "cpu", **options})


def resized(height, width, pixels=PIXELS, factor=28):
    """The reference's size of a picture, a transcription."""
    high, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if high * wide > pixels:
        shrink = math.sqrt(height * width / pixels)
        return tuple(math.floor(side / shrink / factor) * factor for side in (height, width))
    if high * wide < pixels:
        grow = math.sqrt(pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return high, wide


def patches(image):
    """The reference's patches ``(N, 1176)`` and grid, a transcription."""
    high, wide = resized(image.height, image.width)
    pixels = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    frames = np.tile(((pixels - mean) / std).transpose(2, 0, 1)[None], (2, 1, 1, 1))
    rows, columns = high // 14, wide // 14
    blocks = frames.reshape(1, 2, 3, rows // 2, 2, 14, columns // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return torch.tensor(blocks.reshape(rows * columns, -1)).float(), torch.tensor([[1, rows, columns]])


@torch.no_grad()
def reference(model, tensors, words, image, text):
    """The raw output of the reference for one picture, a transcription; its modules are those of ``transformers``."""
    values, grid = patches(image)
    places = "<|image_pad|>" * (int(grid.prod()) // 4)
    chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>" + places
    chat += "<|vision_end|>" + INSTRUCTION.format(text_prompt=text) + "<|im_end|>\n<|im_start|>assistant\n"
    ids = words(chat, return_tensors="pt").input_ids
    embeddings = model.language_model.embed_tokens(ids)
    embeddings[ids == words.convert_tokens_to_ids("<|image_pad|>")] = model.visual(values, grid_thw=grid).pooler_output
    state = model.language_model(inputs_embeds=embeddings).last_hidden_state
    (row,) = state[ids == words.convert_tokens_to_ids("<|Reward|>")]
    for index in (0, 3, 5):
        row = F.linear(row, tensors[f"rm_head.{index}.weight"], tensors[f"rm_head.{index}.bias"])
        row = row if index == 5 else F.relu(row)
    return row


def test_scores_are_those_of_the_reference(published, instructed):
    folder, model, tensors = published
    scorer = load(folder, batch=2)
    result = scorer(IMAGES, PROMPTS)
    expected = torch.stack(
        [reference(model, tensors, scorer._tokenizer, pil(i), t) for i, t in zip(IMAGES, TEXTS, strict=True)]
    )
    torch.testing.assert_close(result.total, expected[:, 0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(result.scores["sigma"], expected[:, 1].exp(), atol=2e-5, rtol=1e-4)
    assert result.valid.all()
    assert expected.std(dim=0).min() > 1e-3
    assert not scorer.info.exact
    alone = [load(folder, batch=1)(IMAGES[i : i + 1], PROMPTS[i : i + 1]).total for i in (0, 3)]
    torch.testing.assert_close(torch.cat(alone), result.total[[0, 3]], atol=2e-5, rtol=1e-4)


def test_pictures_have_the_size_of_the_reference():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    draw = random.Random(0)
    sizes = [(draw.randint(28, 3000), draw.randint(28, 3000)) for _ in range(2000)]
    sizes += [(side, side) for side in range(32, 2049, 32)]
    for height, width in sizes:
        assert smart_resize(height, width, 28, PIXELS, PIXELS) == resized(height, width)


def test_the_names_of_later_releases_are_read_too(published, instructed, tmp_path):
    folder, _, tensors = published
    prefixes = {"model.": "model.language_model.", "visual.": "model.visual."}
    names = {
        name: next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)
        for name in tensors
    }
    save_file({names[name]: value for name, value in tensors.items()}, tmp_path / FILE)
    one, two = (load(folder, source=str(source))(IMAGES[:1], PROMPTS[:1]).total for source in (folder, tmp_path))
    assert torch.equal(one, two)


def test_the_precision_of_the_reference_is_the_default(published, instructed):
    folder, *_ = published
    half, full = HPSv3Reward(str(folder), str(folder), device="cpu"), load(folder)
    assert half(IMAGES, PROMPTS).total == pytest.approx(full(IMAGES, PROMPTS).total, abs=0.05)
    assert "in float32" in full.info.note
    assert "in bfloat16" not in half.info.note
    assert half.weights["dtype"] == "bfloat16"


def test_a_worker_gives_the_same_scores(published, instructed):
    folder, *_ = published
    scorer = load_scorer("hpsv3", {"source": str(folder), "base": str(folder), "dtype": "float32", "device": "cpu"})
    answer = scorer([pil(image) for image in IMAGES[:2]], [prompt_record(prompt) for prompt in PROMPTS[:2]])
    result = load(folder)(IMAGES[:2], PROMPTS[:2])
    assert answer.total == pytest.approx(result.total.tolist(), abs=1e-5)
    assert answer.scores["sigma"] == pytest.approx(result.scores["sigma"].tolist(), abs=1e-5)
    assert scorer.info["weights"].keys() == {"checkpoint", "base", "instruction", "dtype"}


def test_an_own_instruction_replaces_the_published_one(published, tmp_path):
    folder, *_ = published
    path = tmp_path / "own.txt"
    path.write_text("{text_prompt}")
    with pytest.raises(RewardError, match=r"needs <\|Reward\|> once, has it 0 times"):
        load(folder, instruction=str(path))
    path.write_text("Rate {text_prompt}: <|Reward|>")
    assert load(folder, instruction=str(path))(IMAGES[:1], PROMPTS[:1]).valid.all()


@pytest.mark.parametrize("mark", ["<|Reward|>", "<|image_pad|>"])
def test_prompts_with_the_models_own_tokens_are_refused(published, instructed, mark):
    with pytest.raises(PromptError, match=r"prompt 'p' has <\|"):
        load(published[0]).check([Prompt("p", f"a {mark} b", "t")])


@pytest.mark.parametrize(
    ("name", "tensor", "word"),
    [
        ("model.embed_tokens.weight", None, "1 missing .first language_model.embed_tokens.weight"),
        ("visual.blocks.1.attn.qkv.bias", None, "1 missing .first visual.blocks.1.attn.qkv.bias"),
        ("rm_head.5.bias", None, "1 missing .first 5.bias"),
        ("model.head.weight", torch.zeros(2), "1 unexpected .first model.head.weight"),
        ("rm_head.3.weight", torch.zeros(3, 1024), "1 of another shape"),
        ("model.embed_tokens.weight", torch.zeros(264, 32), "a tokenizer of 263 words with .*, for a model of 264"),
    ],
)
def test_wrong_checkpoints_are_one_clear_line(published, instructed, tmp_path, name, tensor, word):
    folder, _, tensors = published
    save_file({n: t for n, t in {**tensors, name: tensor}.items() if t is not None}, tmp_path / FILE)
    with pytest.raises(ArtifactError, match=word) as error:
        load(folder, source=str(tmp_path))
    assert "\n" not in str(error.value)
