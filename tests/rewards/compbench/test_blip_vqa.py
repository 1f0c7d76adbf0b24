"""BLIP-VQA against the official computation, on a tiny model."""

import math

import httpx2 as httpx
import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_compbench import SIDE, bert_words, blip, blip_config, original_blip, save_original_blip
from support.tiny_scorers import pictures

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.compbench.blip_vqa import BlipVQA, BlipVQAReward
from flowopd_cli.rewards.compbench.blip_weights import CHECKPOINT, convert
from flowopd_cli.rewards.pictures import to_pil

QUESTIONS = [["a green bench?", "a blue bowl?"], [], ["the red cat?"], ["a man?", "a fish?", "the dog on the left?"]]


def prompts(*texts):
    return [Prompt(str(i), text, "t2i-compbench") for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def model():
    return blip()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model):
    return save_original_blip(tmp_path_factory.mktemp("blip"), model)


@pytest.fixture(scope="module")
def images():
    return pictures(4)


def reference(model, picture, question, words, first=30523):
    """P(yes) as the official code computes it, one picture and one question at a time."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokens = [words.index(word) for word in question.rstrip("?").split()]
    ids = torch.tensor([[first, *tokens, 1029, 102]])
    with torch.no_grad():
        states = model.vision_model(pixel_values=(pixels - mean) / std).last_hidden_state
        state = model.text_encoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state
        decoder = model.text_decoder(input_ids=torch.tensor([[30522]]), encoder_hidden_states=state)
    probability = decoder.logits[0, 0].softmax(dim=0)
    return float(probability[2748] / (probability[2748] + probability[2053]))


def test_the_original_checkpoint_gives_the_model_back(model, checkpoint):
    tensors = torch.load(checkpoint, weights_only=True)["model"]
    converted, expected = convert(tensors), model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_answers_are_those_of_the_exact_model(model, checkpoint, images, batch):
    """The questions have several lengths: no padding may be attended to, whatever the batch."""
    words = (checkpoint.parent / "vocab.txt").read_text().splitlines()
    answers = BlipVQA(str(checkpoint), batch=batch).p_yes(to_pil(images), QUESTIONS)
    for picture, texts, row in zip(to_pil(images), QUESTIONS, answers, strict=True):
        assert row == pytest.approx([reference(model, picture, question, words) for question in texts], abs=1e-5)
    assert len({round(value, 4) for row in answers for value in row}) > 3


def test_a_converted_folder_is_run_with_the_official_settings(tmp_path, model, checkpoint, images):
    """Its configuration has 8 heads and 1e-5, as conversions on the Hub do."""
    model.save_pretrained(tmp_path)
    blip_config(heads=8, eps=1e-5).save_pretrained(tmp_path)
    bert_words(tmp_path)
    answers = [BlipVQA(str(place)).p_yes(to_pil(images), QUESTIONS) for place in (tmp_path, checkpoint)]
    for row, expected in zip(*answers, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_a_grid_of_384_is_enlarged_and_noted(tmp_path, images):
    blip(side=384).save_pretrained(tmp_path)
    bert_words(tmp_path)
    model = BlipVQA(str(tmp_path))
    assert model.approximations() == ["position grid of 384 pixels, not 480"]
    (answer,) = model.p_yes(to_pil(images[:1]), [["a cat?"]])
    assert 0 < answer[0] < 1


def changed(tmp_path, model, change):
    """The path of a checkpoint with some of its tensors changed."""
    tensors = original_blip(model)
    change(tensors)
    torch.save(tensors, tmp_path / "changed.pth")
    bert_words(tmp_path)
    return str(tmp_path / "changed.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual_encoder.norm.bias"), "1 missing .first vision_model.post_layernorm.bias"),
        (lambda t: t.update({"itm_head.weight": torch.zeros(2)}), "1 unexpected .first itm_head.weight"),
        (lambda t: t.update({"visual_encoder.norm.bias": torch.zeros(3)}), "of another shape"),
        (lambda t: t.pop("visual_encoder.pos_embed"), "not a BLIP-VQA checkpoint"),
    ],
)
def test_other_weights_are_refused(tmp_path, model, change, message):
    with pytest.raises(ArtifactError, match=message):
        BlipVQA(changed(tmp_path, model, change))


def test_tied_tensors_may_be_left_out(tmp_path, model, checkpoint, images):
    def untie(tensors):
        tensors.pop("text_decoder.cls.predictions.decoder.weight")
        tensors.pop("text_decoder.cls.predictions.decoder.bias")

    models = BlipVQA(str(checkpoint)), BlipVQA(changed(tmp_path, model, untie))
    expected, answers = (each.p_yes(to_pil(images[:1]), [["a cat?"]])[0] for each in models)
    assert answers == pytest.approx(expected, abs=1e-6)


def test_the_default_checkpoint_is_downloaded_once(tmp_path, monkeypatch, checkpoint):
    fetched = []

    def answer(request):
        fetched.append(str(request.url))
        return httpx.Response(200, content=checkpoint.read_bytes())

    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    monkeypatch.setattr(httpx, "stream", httpx.Client(transport=httpx.MockTransport(answer)).stream)
    for _ in range(2):
        BlipVQA(tokenizer=str(checkpoint.parent))
    assert fetched == [CHECKPOINT]


def test_the_default_checkpoint_is_exact_with_any_digest(checkpoint, monkeypatch):
    monkeypatch.setattr("flowopd_cli.rewards.compbench.blip_vqa.CHECKPOINT", str(checkpoint))
    monkeypatch.setattr("flowopd_cli.rewards.compbench.blip_vqa.approximations", lambda parser: [])
    monkeypatch.setattr(BlipVQA, "approximations", lambda self: [])
    assert BlipVQAReward(f"{checkpoint}#sha256={'0' * 64}", parser="builtin").info.exact
    assert not BlipVQAReward(str(checkpoint.parent / "." / ".." / checkpoint.parent.name / checkpoint.name)).info.exact


def test_the_reward_multiplies_its_phrases(checkpoint, images):
    reward = BlipVQAReward(str(checkpoint), parser="builtin")
    result = reward(images, prompts("a green bench and a blue bowl", "the red cat", "green", "a man, a fish and a dog"))
    answers = reward.model.p_yes(to_pil(images), [list(d["questions"]) for d in result.details])
    assert result.details[0]["questions"] == ["a green bench?", "a blue bowl?"]
    for total, row in zip(result.total.tolist(), answers, strict=True):
        assert total == pytest.approx(math.prod(round(value, 4) for value in row), abs=6e-5)
        assert total == pytest.approx(round(total, 4), abs=1e-7)
    assert result.total[2] == 1.0  # no phrase at all
    assert result.valid.all()
    assert reward.engine == f"blip-vqa-{SIDE}/builtin-1"
    assert reward.weights["model"].startswith("sha256:"), "no path of this machine"
    assert not reward.info.exact


def test_an_answer_that_is_no_number_is_invalid(checkpoint, images, monkeypatch):
    reward = BlipVQAReward(str(checkpoint), parser="builtin")
    monkeypatch.setattr(reward.model, "p_yes", lambda images, texts: [[0.5], [math.nan]])
    result = reward(images[:2], prompts("a cat", "a dog"))
    assert result.valid.tolist() == [True, False]
    assert result.details[1]["error"] == "an answer is not a number"
    assert math.isnan(result.total[1])
