"""Soft-TIFA by a tiny Qwen3-VL, in the process and behind an endpoint, against the reference's computation."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_compbench import without
from support.tiny_qwen3_vl import save_qwen3_vl
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, PromptError, RewardError
from flowopd_cli.rewards.geneval2.reward import GenEval2EndpointReward, GenEval2Reward
from flowopd_cli.rewards.pictures import to_pil

ATOMS = [
    {
        "vqa_list": [["How many pigs are in the image?", "two"], ["Are there any pigs in the image?", "Yes"]],
        "skills": ["count", "object"],
        "atom_count": 2,
    },
    {
        "vqa_list": [["How many cows are in the image?", "seven"], ["Is the cow red?", "Yes"], ["Is it on it?", "No"]],
        "skills": ["count", "attribute", "position"],
        "atom_count": 3,
    },
]
PROMPTS = [Prompt(str(i), "x", "geneval2", atoms) for i, atoms in enumerate(ATOMS)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen3_vl(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward(folder):
    return GenEval2Reward(folder, dtype="float32")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def reference(model, folder, picture, question, wordings):
    """Transcribed: ``send_message_with_image`` of GenEval 2, its processor's work done by hand."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, chat_template=TEMPLATE)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": f"{question} Answer in one word."}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * (picture.width // 32 * (picture.height // 32)))
    inputs = tokenizer(text, return_tensors="pt")
    kinds = (inputs.input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    asked = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    outputs = model.generate(**inputs, **pixels, mm_token_type_ids=kinds, **asked)
    probabilities = outputs.scores[0].softmax(dim=-1)
    return sum(probabilities[0, tokenizer.encode(wording)[0]].item() for wording in wordings)


def expected(folder, images):
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    two, seven = ["two", "Two", " two", " Two", "2", " 2"], ["seven", "Seven", " seven", " Seven", "7", " 7"]
    number, yes = {"two": two, "seven": seven}, ["Yes", "yes", " yes", " Yes"]
    return [
        [reference(model, folder, picture, question, number.get(answer, yes)) for question, answer in atoms["vqa_list"]]
        for picture, atoms in zip(to_pil(images), ATOMS, strict=True)
    ]


def test_probabilities_are_those_of_the_reference(folder, reward, images):
    result = reward(images, PROMPTS)
    right = expected(folder, images)
    assert result.valid.all()
    for detail, row, atoms in zip(result.details, right, ATOMS, strict=True):
        assert detail["probabilities"] == pytest.approx(row, abs=1e-7)
        assert (detail["skills"], detail["atom_count"]) == (atoms["skills"], atoms["atom_count"])
    assert len({round(p, 4) for row in right for p in row}) == 5
    assert result.scores["am"].tolist() == pytest.approx([sum(row) / len(row) for row in right])
    assert result.total.tolist() == pytest.approx([math.prod(row) ** (1 / len(row)) for row in right])
    assert reward(images[1:], PROMPTS[1:]).details[0] == result.details[1]  # the same, whatever else is in a batch


def test_other_sizes_are_brought_to_the_model_s(reward):
    for height, width in ((40, 50), (300, 200)):
        resized = reward.judge._resized(Image.fromarray(np.zeros((height, width, 3), np.uint8)))
        assert not any(edge % 32 for edge in resized.size)
        assert 32 * 32 <= resized.width * resized.height <= 96 * 96
    assert reward(torch.rand(1, 3, 40, 50), PROMPTS[:1]).valid.all()


def test_another_judge_precision_or_mean_is_named(folder, reward, images):
    assert not reward.info.exact
    assert "other weights" in reward.info.note
    assert "in float32" in reward.info.note
    default = GenEval2Reward(folder, score="am")
    assert "float32" not in default.info.note
    result = default(images, PROMPTS)
    assert torch.equal(result.total, result.scores["am"])
    assert result.total.tolist() == pytest.approx(reward(images, PROMPTS).scores["am"].tolist(), abs=0.05)


def test_a_folder_without_all_weights_is_refused(folder, tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        GenEval2Reward(without(folder, tmp_path, "visual.merger.linear_fc1"))


def test_prompts_without_questions_are_refused(reward):
    with pytest.raises(PromptError, match=r"prompt '7': geneval2 needs GenEval 2's metadata: vqa_list"):
        reward.check([Prompt("7", "a pig", "geneval2")])


def test_a_question_with_a_token_of_the_model_s_own_is_refused(reward):
    atoms = {"vqa_list": [["Is <|vision_start|> red?", "Yes"]], "skills": ["attribute"], "atom_count": 1}
    with pytest.raises(PromptError, match=r"prompt '7' has <\|vision_start\|>, a token of the model's own"):
        reward.check([*PROMPTS, Prompt("7", "a pig", "geneval2", atoms)])


def test_a_judge_that_gives_no_number_makes_the_picture_invalid(reward, images, monkeypatch):
    likely = reward.judge.next_token

    def broken(picture, text):
        return likely(picture, text) * (math.nan if "pigs" in text else 1)

    monkeypatch.setattr(reward.judge, "next_token", broken)
    result = reward(images, PROMPTS)
    assert result.valid.tolist() == [False, True]
    assert result.details[0]["error"] == "a probability is not a number"


def serving(judge, top):
    """A reply that computes what a server with this model would send."""

    def reply(server, handler):
        request = json.loads(handler.body)
        picture, question = request["messages"][0]["content"]
        data = picture["image_url"]["url"].partition(",")[2]
        likely = judge.next_token(Image.open(io.BytesIO(base64.b64decode(data))), question["text"])
        values, tokens = likely.topk(min(top, request["top_logprobs"], len(likely)))
        entries = [
            {"token": judge.tokenizer.decode([token]), "logprob": math.log(value)}
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True)
        ]
        content = {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": entries}]}}]}
        body = json.dumps(content).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def endpoint(server, folder, **options):
    return GenEval2EndpointReward(f"{server.url}/v1", "m", folder, **{"retries": 0, "concurrency": 2, **options})


def test_an_endpoint_gives_the_same_figures(serve, folder, reward, images):
    server = serve(serving(reward.judge, 10_000))
    remote = endpoint(server, folder, top_logprobs=10_000)
    rows = [detail["probabilities"] for detail in reward(images, PROMPTS).details]
    for detail, row in zip(remote(images, PROMPTS).details, rows, strict=True):
        assert detail["probabilities"] == pytest.approx(row, abs=1e-6)
    sent = json.loads(server.requests[0][3])
    assert (sent["max_tokens"], sent["temperature"], sent["logprobs"]) == (1, 0, True)
    assert not remote.info.exact
    few = endpoint(serve(serving(reward.judge, 1)), folder)(images, PROMPTS)
    for detail, row in zip(few.details, rows, strict=True):
        assert all(less <= all_tokens + 1e-6 for less, all_tokens in zip(detail["probabilities"], row, strict=True))


def test_a_refused_question_makes_its_picture_invalid(serve, folder, reward, images):
    server = serve((400, "content policy"), serving(reward.judge, 20))
    result = endpoint(server, folder, concurrency=1)(images, PROMPTS)
    assert result.valid.tolist() == [False, True]
    assert "content policy" in result.details[0]["error"]
    with pytest.raises(RewardError, match="every question was refused"):
        endpoint(serve((400, "no logprobs")), folder)(images, PROMPTS)


def test_an_endpoint_without_log_probabilities_ends_in_one_line(serve, folder, images):
    with pytest.raises(RewardError, match="has no top_logprobs") as error:
        endpoint(serve((200, {"choices": [{"message": {"content": "Yes"}}]})), folder)(images, PROMPTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "http://h/v1"}, "name the endpoint"),
        ({"url": "http://h/v1", "model": "m", "top_logprobs": 0}, "1 or more"),
        ({"url": "http://h/v1", "model": "m", "key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE holds no"),
    ],
)
def test_wrong_options_of_an_endpoint(folder, options, words):
    with pytest.raises(RewardError, match=words):
        GenEval2EndpointReward(tokenizer=folder, **options)
