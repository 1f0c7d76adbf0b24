"""The reader Qwen2.5-VL, loaded from a tiny random model."""

import math
import random

import pytest
import torch
from support.tiny_reader import save_reader
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.ocr.longtext import LongTextReward
from flowopd_cli.rewards.ocr.qwen import QUESTION, QwenTextReader
from flowopd_cli.rewards.pictures import to_pil

TOKENS = 8
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    save_reader(folder)
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    return QwenTextReader(str(folder), dtype="float32", max_tokens=TOKENS)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 70, 100, generator=torch.Generator().manual_seed(0))


def greedy(reader, picture):
    """The text by forward passes over the whole sequence: no cache, the penalty of repetitions by its formula."""
    model, words = reader._model.model, reader._model.tokenizer
    pixels = reader._model.processor([picture], return_tensors="pt")
    _, height, width = pixels.image_grid_thw[0].tolist()
    ids = words.encode(CHAT.format(image="<|image_pad|>" * (height * width // 4), text=QUESTION))
    prompt = len(ids)
    while len(ids) < prompt + TOKENS and (len(ids) == prompt or ids[-1] not in model.generation_config.eos_token_id):
        row = torch.tensor([ids])
        kinds = (row == model.config.image_token_id).int()
        logits = model(input_ids=row, mm_token_type_ids=kinds, **pixels).logits[0, -1]
        used = sorted(set(ids))
        logits[used] = torch.where(logits[used] < 0, logits[used] * 1.05, logits[used] / 1.05)
        ids.append(int(logits.argmax()))
    return words.decode(ids[prompt:], skip_special_tokens=True)


def test_a_text_is_the_greedy_answer_with_the_checkpoint_s_penalty_and_depends_on_the_picture(reader, pictures):
    readings = reader(pictures)
    texts = [reading.lines[0].text for reading in readings]
    assert texts == [greedy(reader, picture) for picture in to_pil(pictures)]
    assert len(set(texts)) > 1


def test_a_picture_is_read_alike_alone_and_in_a_batch(reader, pictures):
    assert [reader(pictures[i : i + 1])[0] for i in range(3)] == reader(pictures)


def reference_size(height, width, squares=(4, 16384)):
    """Transcription of ``qwen_vl_utils``: sides that 28 divides, 4 to 16384 squares."""
    sides = [max(28, round(side / 28) * 28) for side in (height, width)]
    if sides[0] * sides[1] > squares[1] * 28 * 28:
        scale = (height * width / (squares[1] * 28 * 28)) ** 0.5
        sides = [max(28, math.floor(side / scale / 28) * 28) for side in (height, width)]
    elif sides[0] * sides[1] < squares[0] * 28 * 28:
        scale = (squares[0] * 28 * 28 / (height * width)) ** 0.5
        sides = [math.ceil(side * scale / 28) * 28 for side in (height, width)]
    return tuple(sides)


@pytest.mark.parametrize("size", [(512, 512), (70, 100), (333, 30), (20, 1000)])
def test_pictures_are_resized_as_by_the_reference(folder, size):
    picture = to_pil(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)))[0]
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    resized = picture.resize(reference_size(*size)[::-1])
    ours, theirs = (processor([image], return_tensors="pt") for image in (picture, resized))
    assert torch.equal(ours.image_grid_thw, theirs.image_grid_thw)
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_the_processor_leaves_pictures_of_the_reference_s_size_as_they_are(folder):
    draw, limits = random.Random(0), Qwen2VLImageProcessorPil.from_pretrained(folder).size
    limits = {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
    for _ in range(2000):  # a side of 14 pixels or less is rounded to 0 by the processor, to 28 by the reference
        height = round(math.exp(draw.uniform(math.log(15), math.log(9000))))
        width = max(15, round(height * math.exp(draw.uniform(-3, 3))))
        size = reference_size(height, width)
        assert smart_resize(height, width, 28, **limits) == size
        assert smart_resize(*size, 28, **limits) == size


def test_the_reward_names_its_reader_and_what_differs(folder):
    reward = LongTextReward(source=str(folder), dtype="float32", device="cpu", max_tokens=1024)
    assert reward.engine.startswith("qwen2.5-vl/sha256:")
    assert not reward.info.exact
    assert reward.info.note == f"not as the reference: source={folder}, dtype=float32"


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        QwenTextReader(str(tmp_path / "none"))
