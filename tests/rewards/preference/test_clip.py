"""The shared CLIP encoder on a tiny folder: unit vectors, batches of any size, texts that are too long."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_scorers import TOKENS, pictures, save_clip

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import ClipEncoder, paired_cosine

TEXTS = ["a cat", "two dogs, one of them very much larger than the other", "", "blue", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    save_clip(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "clip")


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(folder):
    one, many = (ClipEncoder.load(str(folder), batch=b) for b in (1, 8))
    images = pictures(5)
    for vectors, same in ((one.images(images), many.images(images)), (one.texts(TEXTS), many.texts(TEXTS))):
        torch.testing.assert_close(vectors, same, atol=1e-5, rtol=0)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
        assert vectors.dtype == torch.float32


def test_a_long_text_keeps_its_beginning_and_its_end_token(folder):
    encoder = ClipEncoder.load(str(folder))
    assert encoder.max_tokens == TOKENS
    head = "abcdefghijklmnopqrstuvwxyz"[: TOKENS - 2]
    cut, shorter, other = encoder.texts([head + "uvw", head + "xyz0123", "b" + head])
    torch.testing.assert_close(cut, shorter)
    assert (cut - other).abs().max() > 1e-3
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    letters = [vocab[letter] for letter in head]
    ids = torch.tensor([[vocab["<|startoftext|>"], *letters, vocab["<|endoftext|>"]]])
    by_hand = save_model(folder).get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(cut, torch.nn.functional.normalize(by_hand, dim=-1)[0])


@torch.no_grad()
def save_model(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval().requires_grad_(False)


def test_the_cosine_is_that_of_the_model_itself(folder):
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    encoder = ClipEncoder.load(str(folder))
    images, texts = pictures(2), ["a cat", "blue"]
    model, words = save_model(folder), CLIPTokenizer.from_pretrained(folder)
    inputs = words(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(to_pil(images), return_tensors="pt").pixel_values
    logits = model(**inputs, pixel_values=pixels).logits_per_image.diagonal()
    mine = encoder.scale * paired_cosine(encoder.images(images), encoder.texts(texts))
    torch.testing.assert_close(mine, logits, atol=1e-5, rtol=1e-5)
    assert encoder.scale == pytest.approx(math.exp(2.0))


def test_pairs_are_refused_when_broadcasting_would_hide_them():
    with pytest.raises(ValueError, match="pairs"):
        paired_cosine(torch.ones(3, 4), torch.ones(1, 4))


def test_the_processor_may_come_from_elsewhere(folder, copy):
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ArtifactError):
        ClipEncoder.load(str(copy))
    encoder = ClipEncoder.load(str(copy), processor=str(folder))
    torch.testing.assert_close(encoder.texts(TEXTS), ClipEncoder.load(str(folder)).texts(TEXTS))


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("text_projection.weight", None, "missing (first text_projection.weight)"),
        ("text_projection.weight", torch.zeros(3, 4), "of another shape (first text_projection.weight)"),
        ("head.weight", torch.zeros(2), "unexpected (first head.weight)"),
    ],
)
def test_weights_of_another_model_are_refused(copy, name, value, word):
    file = copy / "model.safetensors"
    tensors = {**load_file(file), name: value}
    save_file({k: v for k, v in tensors.items() if v is not None}, file, metadata={"format": "pt"})
    with pytest.raises(ArtifactError) as error:
        ClipEncoder.load(str(copy))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_folder_and_an_unknown_dtype_are_one_line(folder):
    with pytest.raises(ArtifactError, match=r"^/no/such: no such folder$"):
        ClipEncoder.load("/no/such")
    with pytest.raises(ArtifactError, match="float64"):
        ClipEncoder.load(str(folder), dtype="float64")


def test_half_precision_is_close(folder):
    full, half = (ClipEncoder.load(str(folder), dtype=dtype).texts(TEXTS) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert paired_cosine(full, half).min() > 0.99
