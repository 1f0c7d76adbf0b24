"""A text reader behind a real HTTP server."""

import json

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.ocr.longtext import LongTextReward
from flowopd_cli.rewards.ocr.qwen import QUESTION

IMAGES = torch.zeros(2, 3, 8, 8)
PROMPTS = [Prompt(str(i), "x", "t", {"text": ["one two"]}) for i in range(2)]


def says(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def reward(server, **options):
    url = f"{server.url}/v1"
    return LongTextReward("endpoint", url=url, model="m", concurrency=1, timeout=5, retries=0, **options)


def test_the_question_is_the_benchmark_s_and_a_refused_picture_is_invalid(serve, monkeypatch):
    monkeypatch.setenv("FLOWOPD_VLM_API_KEY", "s3cr3t")
    server = serve(says("two\nthree"), (400, {"error": "too small"}))
    scorer = reward(server)
    result = scorer(IMAGES, PROMPTS)
    assert result.total[0] == 0.5
    assert result.valid.tolist() == [True, False]
    assert "too small" in result.details[1]["error"]
    _, path, headers, body = server.requests[0]
    sent = json.loads(body)
    assert (path, headers["authorization"]) == ("/v1/chat/completions", "Bearer s3cr3t")
    assert (sent["temperature"], sent["max_tokens"]) == (0, 1024)
    assert sent["messages"][0]["content"][1] == {"type": "text", "text": QUESTION}
    assert scorer.engine == "endpoint/m"
    assert not scorer.info.exact


@pytest.mark.parametrize(
    ("replies", "words"),
    [([(400, {"error": "no"})] * 2, "every picture was refused"), ([(200, {"choices": []})], "has no message")],
)
def test_without_a_text_the_run_stops(serve, replies, words):
    with pytest.raises(RewardError, match=words):
        reward(serve(*replies))(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"model": "m"}, "reader endpoint: name the endpoint and its model"), ({"url": "http://h/v1"}, "model")],
)
def test_an_endpoint_and_a_model_are_needed(options, words):
    with pytest.raises(RewardError, match=words):
        LongTextReward("endpoint", **options)
