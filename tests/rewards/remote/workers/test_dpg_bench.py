"""DPG-Bench's worker: as a process over a stand-in for mPLUG, and a tiny mPLUG of modelscope's own classes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.dpg_bench import serving

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.dpg_bench.judges import DPGBenchReward
from flowopd_cli.rewards.remote.isolated import find_script, read_script
from flowopd_cli.rewards.remote.workers import dpg_bench as script
from flowopd_cli.rewards.weights import path_digest

TEXTS = ("Is it Bright?", "Is the bright thing bright?", "Is it dark?")
QUESTIONS = [
    {"id": i, "question": text, "parents": [1] * (i == 2), "category": "entity - whole"}
    for i, text in enumerate(TEXTS, 1)
]
PROMPT = Prompt("p", "a thing", "dpg-bench", {"questions": QUESTIONS})


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    with serving(folder, batch=2) as worker:
        yield worker, folder


def test_a_picture_is_asked_every_question_of_its_prompt(worker):
    worker, folder = worker
    reward = DPGBenchReward(worker.url)
    reward.check([PROMPT])
    images = torch.stack([torch.zeros(3, 6, 9), torch.ones(3, 6, 9)])
    result = reward(images, [PROMPT, PROMPT])
    assert result.total.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert [detail["answers"] for detail in result.details] == [
        {"1": "no", "2": "no", "3": "yes"},
        {"1": "yes", "2": "yes", "3": "no"},
    ]
    assert result.details[1]["categories"] == {"entity - whole": [2, 3]}
    assert reward.weights["model"] == path_digest(folder / "mplug")
    assert (reward.info.name, reward.info.license) == ("dpg-bench", "Apache-2.0")
    assert (reward.info.exact, reward.info.note) == (False, f"answered by {folder / 'mplug'}, not by {script.MODEL}")
    assert script.exactness(script.MODEL, "master") == {"exact": True, "note": ""}
    note = f"answered by its revision v1, not by {script.MODEL}"
    assert script.exactness(script.MODEL, "v1") == {"exact": False, "note": note}


def test_a_question_that_depends_on_one_that_is_not_asked_is_an_invalid_picture(worker):
    prompt = Prompt("p", "a thing", "dpg-bench", {"questions": QUESTIONS[1:]})
    result = DPGBenchReward(worker[0].url)(torch.zeros(1, 3, 8, 8), [prompt])
    assert not result.valid.any()
    assert result.details[0]["error"] == "question 2 depends on question 1, which is not asked"


def test_prompts_without_questions_are_refused(worker):
    reward = DPGBenchReward(worker[0].url)
    with pytest.raises(PromptError, match="prompt 'q': no questions in its metadata"):
        reward.check([PROMPT, Prompt("q", "a dog", "t")])
    with pytest.raises(RewardError, match="prompt 'q': no questions in its metadata"):
        reward(torch.zeros(1, 3, 8, 8), [Prompt("q", "a dog", "t")])


def test_the_script_is_that_of_the_reward():
    assert "modelscope==1.40.2" in read_script(find_script("dpg-bench")).dependencies


@pytest.mark.slow
def test_a_tiny_mplug_answers_as_when_it_is_asked_one_question_at_a_time(tmp_path):
    mplug = pytest.importorskip("modelscope.models.multi_modal.mplug", exc_type=ImportError)
    save_mplug(tmp_path, mplug.MPlug)
    worker = script.DPGBench(model=str(tmp_path), device="cpu", batch=4)
    plain = mplug.MPlug.from_pretrained(str(tmp_path), task=script.TASK).eval()
    generator = np.random.default_rng(0)
    words = ["is", "there", "a", "dog", "red", "Two", "?", "unheard-of"]
    answers = set()
    for side in range(20, 30):
        picture = Image.fromarray(generator.integers(0, 256, (side, 40, 3), dtype=np.uint8))
        questions = [" ".join(generator.choice(words, generator.integers(1, 40))) for _ in range(9)]
        pixels = torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BICUBIC))) / 255
        pixels = ((pixels - torch.tensor(script.MEAN)) / torch.tensor(script.STD)).permute(2, 0, 1)[None]
        expected = []
        for question in questions:
            encoded = plain.tokenizer(
                question.lower(), padding="max_length", truncation=True, max_length=25, return_tensors="pt"
            )
            with torch.no_grad():
                tokens, _ = plain(pixels, encoded, train=False)
            expected.append(plain.tokenizer.decode(tokens[0][0], skip_special_tokens=True))
        assert worker.answers(picture, questions) == expected
        answers.update(expected)
    assert len(answers) > 20


def save_mplug(folder, mplug):
    """A tiny, random mPLUG for VQA in the files of the published one."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["yes", "no", "is", "there", "a", "dog", "red", "two", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    bert = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert |= {"intermediate_size": 64, "max_position_embeddings": 64, "encoder_width": 32, "initializer_range": 0.5}
    bert |= {
        "text_encoder_layers": 1,
        "text_decode_layers": 1,
        "fusion_layers": 2,
        "fusion_layer": 1,
        "stride_layer": 1,
    }
    (folder / "config_bert.json").write_text(json.dumps(bert))
    sizes = {"task": "visual-question-answering", "image_res": 32, "distill": False, "max_length": 6, "beam_size": 3}
    sizes |= {"clip_name": "ViT-B-16", "vision_width": 768, "clip_vision_width": 768, "clip_vision_patch_size": 16}
    sizes |= {"clip_vision_layers": 1, "clip_image_resolution": 32, "clip_embed_dim": 8, "clip_context_length": 8}
    sizes |= {"clip_vocab_size": 8, "clip_transformer_width": 8, "clip_transformer_heads": 1}
    (folder / "config.yaml").write_text(json.dumps({**sizes, "clip_transformer_layers": 1}))
    torch.manual_seed(0)
    model = mplug.from_pretrained(str(folder), task=sizes["task"], load_checkpoint=False)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"module": state}, folder / "pytorch_model.bin")
