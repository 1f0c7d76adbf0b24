"""DPG-Bench's questions to a judge behind an endpoint."""

import json

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.dpg_bench.judges import DPGBenchVLMReward

IMAGES = torch.rand(2, 3, 8, 8)
QUESTIONS = [
    {"id": 1, "question": "Is there a dog?", "category": "entity - whole"},
    {"id": 2, "question": "Is the dog red?", "parents": [1], "category": "attribute - color"},
]
PROMPTS = [
    Prompt("a", "a red dog", "dpg-bench", {"questions": QUESTIONS}),
    Prompt("b", "x", "dpg-bench", {"questions": QUESTIONS[:1]}),
]


def reply(text):
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


def judge(server):
    return DPGBenchVLMReward(f"{server.url}/v1", "m", backoff=0.01, concurrency=1, retries=0)


def test_each_question_is_asked_and_a_failed_parent_counts_against_its_children(serve):
    server = serve(reply("0"), reply("1."), reply(" **1** "))
    reward = judge(server)
    result = reward(IMAGES, PROMPTS)
    assert result.total.tolist() == [0.0, 1.0]
    assert result.details[0]["answers"] == {"1": "no", "2": "yes"}
    assert result.details[0]["categories"] == {"entity - whole": [0, 1], "attribute - color": [1, 1]}
    texts = [json.loads(body)["messages"][0]["content"][1]["text"] for *_, body in server.requests]
    assert [text.splitlines()[-1] for text in texts] == ["Is there a dog?", "Is the dog red?", "Is there a dog?"]
    assert not reward.info.exact


def test_a_question_without_an_answer_is_an_invalid_picture(serve):
    result = judge(serve(reply("1"), reply("perhaps"), reply("1")))(IMAGES, PROMPTS)
    assert result.valid.tolist() == [False, True]
    assert "no score of the requested form" in result.details[0]["error"]


def test_a_judge_that_refuses_everything_stops_the_run(serve):
    with pytest.raises(RewardError, match="dpg-bench-vlm: every picture was refused"):
        judge(serve((400, {"error": "no pictures"})))(IMAGES, PROMPTS)


def test_prompts_without_questions_are_refused(serve):
    with pytest.raises(PromptError, match="prompt 'x': no questions in its metadata"):
        judge(serve(reply("1"))).check([*PROMPTS, Prompt("x", "a dog", "t")])
