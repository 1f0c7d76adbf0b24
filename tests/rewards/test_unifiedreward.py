"""UnifiedReward's protocol against a real HTTP server and a tiny Qwen2.5-VL, and its parsing as in Flow-GRPO."""

import base64
import hashlib
import io
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_qwen_vl import MARKS
from support.tiny_reader import save_reader
from support.tiny_scorers import pictures, pil

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError, RewardError
from flowopd_cli.rewards.remote.protocol import prompt_record
from flowopd_cli.rewards.remote.worker import load_scorer
from flowopd_cli.rewards.unifiedreward import VARIANTS, UnifiedReward

IMAGES = pictures(3)
TEXTS = ['say "{prompt}"', "a red cat", ""]
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(TEXTS)]
QUESTION = "<image>\nHow good?\nText Caption: [{prompt}]"
SERVED = "CodeGoat24/UnifiedReward-7b-v1.5"


@pytest.fixture(autouse=True)
def _published(monkeypatch, tmp_path):
    """Files with a tiny question in the cache, in the place of the authors'."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    code = f"def ask(prompt):\n    return f{QUESTION!r}\n"
    for name, variant in VARIANTS.items():
        (tmp_path / "weights" / str(variant.source.name)).write_text(code)
        source = replace(variant.source, sha256=hashlib.sha256(code.encode()).hexdigest())
        monkeypatch.setitem(VARIANTS, name, replace(variant, source=source))


def reply(text, finish="stop"):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def ask(server, model=SERVED, **options):
    return UnifiedReward(f"{server.url}/v1", model, **{"backoff": 0.01, "timeout": 5.0, "concurrency": 1, **options})


def shown(request):
    """The question and the picture that a server got."""
    picture, question = request["messages"][0]["content"]
    return question["text"], Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2])))


def test_the_protocol_of_flow_grpo(serve):
    server = serve(reply("Fine. Final Score: 3.25"), reply("Final Score:\n4/5", "length"), reply("I cannot say."))
    reward = ask(server)
    result = reward(IMAGES, PROMPTS)
    assert result.scores["raw"].tolist() == [3.25, 4.0, 0.0]
    torch.testing.assert_close(result.total, torch.tensor([0.65, 0.8, 0.0]))
    assert result.valid.all()
    assert result.details[2]["error"] == "the answer has no score; it counts as 0, as in the reference"
    for (_, path, _, body), image, text in zip(server.requests, IMAGES, TEXTS, strict=True):
        sent = json.loads(body)
        question, picture = shown(sent)
        assert (path, sent["temperature"], sent.keys()) == (
            "/v1/chat/completions",
            0,
            {"model", "messages", "temperature"},
        )
        assert question == QUESTION.replace("{prompt}", text)
        assert np.array_equal(np.asarray(picture), np.asarray(pil(image).resize((512, 512))))
    assert reward.info.exact


def test_another_model_question_or_rule_is_not_exact(serve):
    server = serve(reply("No."))
    for options, note in (
        ({"model": "judge"}, "judged by judge, not by UnifiedReward-7b-v1.5"),
        ({"variant": "elements"}, "another question"),
        ({"unreadable": "invalid"}, "without a score are invalid"),
        ({"extra": {"temperature": 0, "top_p": 0.9}}, "other settings of the request: top_p"),
    ):
        reward = ask(server, **options)
        assert not reward.info.exact
        assert note in reward.info.note
    reward = ask(server, unreadable="invalid")
    assert not reward(IMAGES[:1], PROMPTS[:1]).valid.any()
    ask(server, variant="elements")(IMAGES[:1], PROMPTS[:1])
    sent = json.loads(server.requests[-1][3])
    assert sent["max_tokens"] == 512
    assert shown(sent)[1].size == (56, 40)


def test_settings_of_the_request_are_part_of_the_judge_s_identity(serve):
    plain, same, warm, cold = (
        ask(serve(reply("")), extra=extra)
        for extra in ({}, {"temperature": 0}, {"temperature": 1, "seed": 2}, {"seed": 2, "temperature": 1})
    )
    assert plain.info == same.info
    assert plain.info.exact
    assert plain.weights != warm.weights == cold.weights


def reference_score(text):
    """The score of an answer in Flow-GRPO and DiffusionNFT, a transcription."""
    match = re.search(r"Final Score:\s*([1-5](?:\.\d+)?)", text)
    return float(match.group(1)) if match else 0.0


def test_answers_are_read_as_in_flow_grpo(serve):
    draw = random.Random(0)
    pieces = [
        "Final Score:",
        "final score:",
        "Final Score :",
        " ",
        "\n",
        "**",
        *"0123456789",
        ".",
        "/5",
        "-",
        "3.75",
        "x",
    ]
    reward = ask(serve(reply("")))
    answers = ["".join(draw.choices(pieces, k=draw.randint(0, 12))) for _ in range(3000)]
    answers += [f"Final Score: {draw.choice(pieces)}{draw.choice(pieces)}" for _ in range(1000)]
    scores = [reward.read(answer, False).score for answer in answers]
    assert scores == [reference_score(answer) for answer in answers]
    assert 500 < sum(score > 0 for score in scores) < 3000


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "name the endpoint"),
        ({"url": "http://h/v1", "model": "m", "source": "x"}, "not both"),
        ({"url": "http://h/v1", "model": "m", "variant": "x"}, "flow_grpo, elements"),
        ({"url": "http://h/v1", "model": "m", "unreadable": "x"}, "zero, invalid"),
        ({"url": "http://h/v1", "model": "m", "template": "x"}, "unifiedreward: no option template"),
        ({"url": "http://h/v1", "model": "m", "api_key": "x"}, "read from the environment"),
        ({"url": "http://h/v1", "model": "m", "on_error": "x"}, "retry, skip, fail"),
        ({"source": "x", "extra": {"top_p": 0.9, "max_tokens": 9}}, "extra top_p: a source takes max_tokens alone"),
    ],
)
def test_wrong_options_are_one_clear_line(options, word):
    with pytest.raises(RewardError, match=word) as error:
        UnifiedReward(**options)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    return folder, save_reader(folder)


def test_a_model_in_this_process_answers_as_its_own_generate(judge):
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil

    folder, model = judge
    options = {"dtype": "float32", "device": "cpu", "extra": {"max_tokens": 9}}
    reward = UnifiedReward(source=str(folder), variant="elements", **options)
    result = reward(IMAGES, PROMPTS)
    assert not reward.concurrent
    assert reward.weights["dtype"] == "float32"
    with pytest.raises(PromptError, match=r"prompt 'p' has <\|image_pad\|>, a token of the model's own"):
        reward.check([*PROMPTS, Prompt("p", f"a {MARKS[2]} b", "t")])
    words, processor = Qwen2Tokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
    for image, text, detail in zip(IMAGES, TEXTS, result.details, strict=True):
        picture = processor([pil(image)], return_tensors="pt")
        places = MARKS[2] * (int(picture.image_grid_thw.prod()) // 4)
        chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        chat += (
            MARKS[0] + places + MARKS[1] + QUESTION.replace("{prompt}", text) + "<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = words(chat, return_tensors="pt")
        kinds = (tokens.input_ids == words.convert_tokens_to_ids(MARKS[2])).int()
        output = model.generate(**tokens, **picture, mm_token_type_ids=kinds, max_new_tokens=9, do_sample=False)
        answer = words.decode(output[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        assert answer == detail["answer"] != ""
    scorer = load_scorer("unifiedreward", {"source": str(folder), "variant": "elements", **options})
    served = scorer([pil(image) for image in IMAGES], [prompt_record(prompt) for prompt in PROMPTS])
    assert [detail["answer"] for detail in served.details] == [detail["answer"] for detail in result.details]


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ArtifactError, match="kind qwen3_vl, not qwen2_vl or qwen2_5_vl: serve it"):
        UnifiedReward(source=str(tmp_path))
