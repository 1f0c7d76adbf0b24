"""The judge against a real HTTP server: requests, strict parsing of answers, faults."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.vlm import PRESETS, VLMReward, read_answer

torch.manual_seed(0)
IMAGES = torch.rand(3, 3, 24, 32)
PROMPTS = [Prompt(str(i), text, "t") for i, text in enumerate(["a {red} cat", 'say "hi"', "Ein Bär"])]
FAST = {"backoff": 0.01, "timeout": 5.0, "concurrency": 1}


def reply_with(text, finish="stop"):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def judge(*servers, **options):
    return VLMReward([f"{server.url}/v1" for server in servers], "m", **{**FAST, **options})


def test_what_is_sent_and_what_comes_back(serve, monkeypatch):
    monkeypatch.setenv("FLOWOPD_VLM_API_KEY", "s3cr3t")
    server = serve(
        reply_with("Good.\nFinal Score: 4"), reply_with("**Final Score:** 2.5"), reply_with("Final Score: 5/5")
    )
    result = judge(server)(IMAGES, PROMPTS)
    assert result.scores["raw"].tolist() == [4.0, 2.5, 5.0]
    torch.testing.assert_close(result.total, torch.tensor([0.8, 0.5, 1.0]))
    assert result.valid.all()
    method, path, headers, body = server.requests[0]
    assert (method, path, headers["authorization"]) == ("POST", "/v1/chat/completions", "Bearer s3cr3t")
    sent = json.loads(body)
    assert (sent["model"], sent["temperature"]) == ("m", 0)
    picture, question = sent["messages"][0]["content"]
    assert "[a {red} cat]" in question["text"]
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(pixels, (IMAGES[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    assert "s3cr3t" not in str(result.details)


def test_large_pictures_shrink_and_options_reach_the_request(serve):
    server = serve(reply_with("<overall> 3.5 </overall>"))
    extra = {"max_tokens": None, "seed": 7}
    reward = judge(server, preset="qwenvl", side=16, extra=extra)
    assert reward(IMAGES[:1], PROMPTS[:1]).total.tolist() == [pytest.approx(0.7)]
    sent = json.loads(server.requests[0][3])
    assert "max_tokens" not in sent
    assert sent["seed"] == 7
    data = sent["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (16, 12)


FINAL_SCORES = ["", " four", " 0", " 6", " -3", " 4,5", " 80%", " 4/10", " 4.5.1", " 3 out of 10", " 3-4", " 3 or 4"]
FINAL_SCORES += [" 1 1/2", " 4 , 5", " 3, or is it Final Score: 4", " 4 <think> or rather", " 3\nFinal Score: 4"]
THOUGHTS = ["<think>Final Score: 2", "Final Score: 2\n</think>\nI cannot say the score."]


@pytest.mark.parametrize(
    "answer", ["", "A nice picture, 4 of 5.", *THOUGHTS, *(f"Final Score:{end}" for end in FINAL_SCORES)]
)
def test_an_unparsable_answer_is_invalid_and_never_zero(serve, answer):
    result = judge(serve(reply_with(answer), reply_with("Final Score: 3")))(IMAGES[:2], PROMPTS[:2])
    assert result.valid.tolist() == [False, True]
    assert torch.isnan(result.total[0])
    assert torch.isnan(result.scores["raw"][0])
    assert "score" in result.details[0]["error"]
    assert result.details[0]["answer"] == answer
    assert "error" not in result.details[1]


@pytest.mark.parametrize(
    ("preset", "answer", "score"),
    [
        ("unifiedreward", "Final Score: 4.", 4.0),
        ("unifiedreward", "final score:  3 / 5", 3.0),
        ("unifiedreward", "Final Score: 3\n...\nFinal Score: 3.0", 3.0),
        ("unifiedreward", "<think>Final Score: 2?</think>Final Score: 4", 4.0),
        ("unifiedreward", "Let me see.\nFinal Score: 2\n</think>\n**Final Score: 4.5** \r\n", 4.5),
        ("unifiedreward", "The Final Score: **5** / 5.", None),
        ("unifiedreward", "The **Final Score:**\n**5 / 5**.\nGood.", 5.0),
        ("qwenvl", "<overall>4 / 10</overall>", None),
        ("qwenvl", "<overall>3-4</overall>", None),
        ("qwenvl", "well <Overall>1</Overall>", 1.0),
        ("qwenvl", "<overall>4/5</overall>", 4.0),
    ],
)
def test_reading(preset, answer, score):
    assert read_answer(answer, PRESETS[preset]).score == score


@pytest.mark.parametrize(
    ("reply", "words", "answer"),
    [(reply_with("Final Score: 4", "length"), "cut off", "Final Score: 4")]
    + [((200, tree), "no message", "") for tree in ({"error": "x"}, {"choices": []}, reply_with(None)[1], [1])],
)
def test_an_incomplete_reply_is_invalid(serve, reply, words, answer):
    result = judge(serve(reply, reply_with("Final Score: 3")))(IMAGES[:2], PROMPTS[:2])
    assert result.valid.tolist() == [False, True]
    assert words in result.details[0]["error"]
    assert result.details[0]["answer"] == answer


@pytest.mark.parametrize("fault", [(500, "down"), (200, b"<html>busy")])
@pytest.mark.parametrize(("on_error", "requests"), [("retry", 4), ("fail", 1)])
def test_without_an_answer_the_run_stops(serve, fault, on_error, requests):
    server = serve(fault)
    with pytest.raises(RewardError, match=r"HTTP 500|not JSON"):
        judge(server, retries=3, on_error=on_error)(IMAGES, PROMPTS)
    assert len(server.requests) == requests


@pytest.mark.parametrize("fault", [(500, "HTTP 500"), (200, b"not JSON")])
def test_with_skip_a_picture_without_an_answer_is_invalid(serve, fault):
    server = serve(fault, fault, reply_with("Final Score: 3"))
    result = judge(server, retries=1, on_error="skip")(IMAGES[:2], PROMPTS[:2])
    assert result.valid.tolist() == [False, True]
    assert torch.isnan(result.total[0])
    assert re.search("HTTP 500|not JSON", result.details[0]["error"])
    with pytest.raises(RewardError, match="HTTP 401"):
        judge(serve((401, "no key")), on_error="skip")(IMAGES[:1], PROMPTS[:1])


def test_a_picture_that_is_refused_is_invalid_but_a_refusal_of_all_stops(serve):
    server = serve((400, "content policy"), reply_with("Final Score: 3"))
    result = judge(server)(IMAGES[:2], PROMPTS[:2])
    assert result.valid.tolist() == [False, True]
    assert "content policy" in result.details[0]["error"]
    with pytest.raises(RewardError, match=r"every picture was refused.*no such field"):
        judge(serve((400, "no such field")))(IMAGES, PROMPTS)


def test_a_custom_template(serve):
    server = serve(reply_with("42 points"))
    reward = judge(server, template="Rate {prompt}", pattern=r"(\d+) points", low=0, high=100, divisor=100)
    assert reward(IMAGES[:1], PROMPTS[1:2]).total.tolist() == [pytest.approx(0.42)]
    assert (reward.info.low, reward.info.high) == (0, 1)
    assert json.loads(server.requests[0][3])["messages"][0]["content"][1]["text"] == 'Rate say "hi"'


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"url": "http://h/v1"}, "name the endpoint"),
        ({"url": "h/v1", "model": "m"}, "want http"),
        ({"url": "http://h/v1", "model": "m", "preset": "x"}, "unifiedreward, qwenvl"),
        ({"url": "http://h/v1", "model": "m", "api_key": "k"}, "read from the environment"),
        ({"url": "http://h/v1", "model": "m", "key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE holds no"),
        ({"url": "http://h/v1", "model": "m", "pattern": "("}, "not a regular expression"),
        ({"url": "http://h/v1", "model": "m", "pattern": "x"}, "0 groups"),
        ({"url": "http://h/v1", "model": "m", "low": 5}, "must be below"),
        ({"url": "http://h/v1", "model": "m", "concurrency": 0}, "1 or more"),
        ({"url": "http://h/v1", "model": "m", "on_error": "ignore"}, "retry, skip, fail"),
    ],
)
def test_wrong_options_are_one_clear_line(options, word):
    with pytest.raises(RewardError, match=word) as error:
        VLMReward(**options)
    assert "\n" not in str(error.value)
