"""DeQA's worker script with a stand-in for its model: prompt, picture, levels and their dot product."""

import hashlib

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.workers import deqa

WORDS = ["<s>", *deqa.LEVELS]


class Tokenizer:
    bos_token_id = 0

    def __call__(self, text):
        token = WORDS.index(text) if text in WORDS else len(text)
        return type("Encoded", (), {"input_ids": [self.bos_token_id, token]})


class Model(torch.nn.Module):
    """Logits of the levels that follow the picture's mean, at the last place alone."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, input_ids, images, use_cache, return_dict):
        assert not torch.is_grad_enabled()
        before, after = deqa.PROMPT.split("<|image|>")
        assert input_ids.tolist() == [[0, len(before), -200, len(after)]] * len(images)
        self.batches.append(images)
        logits = torch.zeros(len(images), 4, len(WORDS))
        logits[:, -1, 1] = images.mean(dim=(1, 2, 3))
        return type("Output", (), {"logits": logits})


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """A scorer over the stand-ins, and what its model was loaded with."""
    CLIPImageProcessorPil(size={"shortest_edge": 448}, crop_size={"height": 448, "width": 448}).save_pretrained(
        tmp_path
    )
    model, arguments = Model(), {}
    monkeypatch.setattr(deqa, "MODEL", str(tmp_path))

    def load(name, **options):
        arguments.update(options, name=name)
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *given, **options: Tokenizer())
    monkeypatch.setattr(transformers, "CLIPImageProcessor", CLIPImageProcessorPil)
    return (lambda **options: deqa.DeQA(model=str(tmp_path), device="cpu", **options)), model, arguments


def gray(value, size=(8, 8)):
    return Image.new("RGB", size, (value,) * 3)


def test_scores(setup):
    build, model, arguments = setup
    scorer = build(batch=2)
    answer = scorer([gray(0), gray(200), gray(120)], [{}] * 3)
    assert [len(images) for images in model.batches] == [2, 1]
    assert model.batches[0].shape == (2, 3, 448, 448)
    for i, value in enumerate((0, 200, 120)):
        mean, std = (np.array(numbers) for numbers in (scorer.processor.image_mean, scorer.processor.image_std))
        level = ((value / 255 - mean) / std).mean()
        odds = np.exp([level, 0, 0, 0, 0])
        expected = float(odds @ [5, 4, 3, 2, 1] / odds.sum())
        assert answer.scores["score"][i] == pytest.approx(expected, abs=1e-4)
        assert answer.total[i] == pytest.approx(expected / 5, abs=1e-4)
        assert sum(answer.details[i].values()) == pytest.approx(1, abs=1e-5)
    assert arguments["trust_remote_code"] is True
    assert arguments["attn_implementation"] == "eager"
    assert arguments["revision"] == deqa.REVISION


@pytest.mark.parametrize("options", [{"model": "somebody/else"}, {"revision": "main"}, {"revision": None}])
def test_other_code_runs_only_with_consent(setup, tmp_path, options):
    _, _, arguments = setup
    with pytest.raises(RewardError, match="runs code of its own: if you trust it, say trust_remote_code=true"):
        deqa.DeQA(**{"model": str(tmp_path), "device": "cpu", **options})
    assert not arguments


def test_consent_to_the_code_of_another_revision(setup):
    build, _, arguments = setup
    build(revision="main", trust_remote_code=True)
    assert (arguments["trust_remote_code"], arguments["revision"]) == (True, "main")


def test_the_undivided_score(setup):
    build, _, _ = setup
    scorer = build(divide=1)
    answer = scorer([gray(50)], [{}])
    assert answer.total == answer.scores["score"]
    assert (scorer.info["low"], scorer.info["high"]) == (1, 5)


@pytest.mark.parametrize("size", [(6, 2), (2, 6), (4, 4), (5, 2)])
def test_pictures_are_padded_in_the_middle(size):
    square = np.asarray(deqa.squared(gray(255, size), (1, 2, 3)))
    side = max(size)
    assert square.shape == (side, side, 3)
    rows, columns = np.where((square == 255).all(axis=2))
    assert (columns.min(), rows.min()) == ((side - size[0]) // 2, (side - size[1]) // 2)
    assert len(rows) == size[0] * size[1]
    assert (square[(square != 255).any(axis=2)] == [1, 2, 3]).all()


def test_a_local_model_is_identified_by_its_bytes(tmp_path):
    digests = []
    for name, content in (("here", b"abc"), ("there", b"abc"), ("other", b"abd")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        digests.append(deqa.describe(str(tmp_path / name), None, "float32", 5.0)["weights"]["model"])
    digest = hashlib.sha256(hashlib.sha256(b"abc").hexdigest().encode()).hexdigest()
    assert digests[0] == digests[1] == f"sha256:{digest}"
    assert digests[2] != digests[0]
    hub = deqa.describe("owner/no-folder", "abc", "float32", 5.0)["weights"]
    assert hub == {"model": "owner/no-folder@abc"}
