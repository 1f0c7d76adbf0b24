"""The client against real worker processes: what they score, and every way they fail. No score becomes zero."""

import json
import logging
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
import torch
from support.scripted import Scripted, hang
from support.workers import started

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.remote.client import RemoteReward, WorkerMismatch, reward_info, worker_info
from flowopd_cli.rewards.remote.deqa import DeQAReward

QUICK = {"retries": 1, "backoff": 0.01}
SHORT = {"timeout": 0.4, **QUICK}


@pytest.fixture
def worker(tmp_path):
    """Starts workers and ends them with the test."""
    with ExitStack() as stack:
        yield lambda mode="sound", *flags, **options: stack.enter_context(
            started(mode, *flags, folder=tmp_path, **options)
        )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One sound worker for all tests."""
    with started(folder=tmp_path_factory.mktemp("sound")) as found:
        yield found


def pictures(count=4, size=8):
    """Pictures whose red is 0, 1/8, 2/8 ..."""
    images = torch.full((count, 3, size, size), 0.5)
    images[:, 0] = (torch.arange(count) * 32 / 255)[:, None, None]
    return images


def prompts(count=4):
    return [Prompt(f"p{i}", f"text {i}", "t", {"tag": i, "box": (1, 2)}) for i in range(count)]


def score(reward, count=4):
    return reward(pictures(count), prompts(count))


def assert_left_out(result, count=4):
    """Every picture is invalid with a reason, and none has a number."""
    assert result.valid.tolist() == [False] * count
    assert torch.isnan(result.total).all()
    assert all(detail["error"] for detail in result.details)


def test_scores_in_order_through_small_requests(sound):
    reward = RemoteReward(sound.url, batch=3)
    before = sound.calls
    result = score(reward, 7)
    assert result.total.tolist() == pytest.approx([i * 32 / 255 for i in range(7)])
    assert result.valid.all()
    assert result.scores["width"].tolist() == [8.0] * 7
    assert [detail["text"] for detail in result.details] == [f"text {i}" for i in range(7)]
    assert sound.batches[before:] == [3, 3, 1]


def test_the_worker_says_who_it_is(sound):
    reward = RemoteReward(sound.url)
    assert (reward.info.name, reward.info.low, reward.info.high) == ("red", 0.0, float("inf"))
    assert reward.weights == {"model": "one", "worker": "test 1"}
    assert len(reward.worker.fingerprint) == 12


def test_nothing_to_score(sound):
    result = RemoteReward(sound.url)(torch.zeros(0, 3, 8, 8), [])
    assert result.total.shape == (0,)


def test_prompts_are_refused_by_the_worker_itself(sound):
    reward = RemoteReward(sound.url)
    reward.check(prompts(3))
    with pytest.raises(PromptError, match="'x': is bad"):
        reward.check([Prompt("x", "bad", "t")])


def test_requests_keep_to_the_limit_of_bytes(worker):
    found = worker("sound", "--max-bytes", "9000")
    reward = RemoteReward(found.url, batch=100)
    images = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert reward(images, prompts(6)).valid.all()
    assert max(found.batches) < 6


def test_requests_keep_to_the_limit_of_pixels(sound):
    reward = RemoteReward(sound.url, batch=100)
    assert reward.worker.limits["request_pixels"] == 32 << 20
    reward.worker.limits["request_pixels"] = 3 * 64 + 1
    before = len(sound.batches)
    assert score(reward, 7).valid.all()
    assert sound.batches[before:] == [3, 3, 1]


def test_two_workers_share_the_work(worker, sound):
    other = worker()
    before = sum(sound.batches)
    assert score(RemoteReward(f"{sound.url}, {other.url}", batch=1), 6).valid.all()
    assert sum(other.batches) + sum(sound.batches) - before == 6
    assert other.calls >= 1


def test_what_a_client_gave_up_is_not_scored(worker):
    found = worker("gate")
    with pytest.raises(RewardError, match="no answer within"):
        score(RemoteReward(found.url, timeout=0.3, retries=3, backoff=0.01))
    begun = found.calls
    assert begun <= 1
    found.open_gate()
    assert score(RemoteReward(found.url)).valid.all()
    assert found.calls == begun + 1


# -- faults: killed, hanging, slow, 500 ------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["retry", "fail", "skip"])
def test_killed_in_the_middle(worker, on_error):
    reward = RemoteReward(worker("kill").url, **QUICK, on_error=on_error)
    if on_error == "skip":
        assert_left_out(score(reward))
        return
    with pytest.raises(RewardError) as error:
        score(reward)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("reward red: no answer after")


def test_failover_when_one_is_killed(worker, sound):
    reward = RemoteReward(f"{worker('kill').url},{sound.url}", **QUICK, batch=1, on_error="fail")
    result = score(reward, 6)
    assert result.valid.all()
    assert result.total.tolist() == pytest.approx([i * 32 / 255 for i in range(6)])


def test_failover_when_one_hangs_asks_it_once(worker, sound):
    hanging = worker("slow")
    reward = RemoteReward(f"{hanging.url},{sound.url}", **QUICK, timeout=1.5, batch=2)
    for _ in range(4):
        assert score(reward).valid.all()
    assert hanging.calls <= 1


@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_hanging(worker, on_error):
    found = worker("slow")
    reward = RemoteReward(found.url, **SHORT, on_error=on_error)
    began = time.monotonic()
    if on_error == "skip":
        assert_left_out(score(reward))
    else:
        with pytest.raises(RewardError, match=r"no answer within 0\.4 s"):
            score(reward)
    assert time.monotonic() - began < 5


def test_a_worker_that_hung_once_is_tried_again(worker):
    found = worker("hang_first", seconds=1.0)
    reward = RemoteReward(found.url, timeout=0.8, retries=4, backoff=0.2)
    assert score(reward).valid.all()


def test_slow_is_no_fault(worker):
    assert score(RemoteReward(worker("slow", seconds=0.3).url, timeout=30)).valid.all()


def test_server_errors_are_retried_and_then_said(worker):
    found = worker("error_first", failures=2)
    assert score(RemoteReward(found.url, retries=2, backoff=0.01)).valid.all()
    assert found.calls == 3
    broken = worker("error")
    with pytest.raises(RewardError, match=r"after 3 attempts.*HTTP 500.*RuntimeError: the detector broke"):
        score(RemoteReward(broken.url, retries=2, backoff=0.01))
    assert broken.calls == 3
    assert "Traceback" in broken.log


def test_fail_asks_once(worker):
    found = worker("error_first", failures=1)
    with pytest.raises(RewardError, match="after 1 attempt:"):
        score(RemoteReward(found.url, on_error="fail"))
    assert found.calls == 1


def test_skip_says_so_once_and_when_it_is_over(worker, caplog):
    reward = RemoteReward(worker("error_first", failures=2).url, on_error="skip", retries=0)
    with caplog.at_level(logging.WARNING, "flowopd.rewards"):
        assert_left_out(score(reward))
        assert_left_out(score(reward))
        assert score(reward).valid.all()
    assert [message.split(":")[1].strip() for message in caplog.messages] == [
        "pictures are left out of their groups",
        "the worker answers again",
    ]


@pytest.fixture
def played():
    """A worker whose answers to ``/score`` are ``replies``, one after the other, the last for ever."""
    with ExitStack() as stack:

        def make(*replies):
            server = Scripted((200, INFO))
            stack.callback(server.close)
            server.play = list(replies)
            server.replies = [lambda server, handler: play(server, handler)]
            return server

        yield make


INFO = {"protocol": 1, "reward": "red", "fingerprint": "f", "package": "test 1", "weights": {}}


def play(server, handler):
    prepared = [(200, INFO)] if handler.command == "GET" else server.play
    reply = prepared.pop(0) if len(prepared) > 1 else prepared[0]
    if callable(reply):
        reply(server, handler)
        return
    status, tree = reply
    content = json.dumps(tree).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def posts(server):
    return sum(method == "POST" for method, *_ in server.requests)


def good(*totals):
    return 200, {**INFO, "total": list(totals), "scores": {}, "valid": [True] * len(totals), "details": []}


def test_with_skip_a_dead_worker_has_full_patience_once(played):
    server = played((500, {"error": "down"}))
    reward = RemoteReward(server.url, **QUICK, on_error="skip", batch=1)
    assert_left_out(score(reward))
    assert posts(server) == 2 + 1 + 1 + 1
    server.play[:] = [good(0.5)]
    assert score(reward).valid.all()
    assert posts(server) == 5 + 4
    server.play[:] = [(500, {"error": "down"}), good(0.5)]
    assert score(reward).valid.all()


def test_with_skip_a_hanging_worker_is_waited_for_once_a_call(played):
    server = played(hang)
    reward = RemoteReward(server.url, **SHORT, on_error="skip", batch=1)
    assert_left_out(score(reward))
    assert posts(server) == 2
    assert_left_out(score(reward))
    assert posts(server) == 3
    server.play[:] = [good(0.5)]
    reward._policy = replace(reward._policy, timeout=30)
    assert score(reward).valid.all()


def test_an_invalid_answer_is_retried(played):
    wrong, kinds = good(0.5, 0.5), (200, {**good(0.5)[1], "total": ["good"]})
    server = played(wrong, kinds, good(0.25))
    assert score(RemoteReward(server.url, retries=2, backoff=0.01), 1).total.tolist() == [0.25]
    assert posts(server) == 3


def test_failover_when_one_gives_answers_that_are_none(played):
    bad, sound = played(good(0.5, 0.5)), played(good(0.25))
    reward = RemoteReward(f"{bad.url},{sound.url}", on_error="fail", batch=1)
    assert score(reward, 4).total.tolist() == [0.25] * 4
    assert posts(bad) >= 1


def test_an_absent_worker_is_tried_once_where_another_answers(played, caplog):
    bad = Scripted((503, "loading"))
    with closing(bad):
        reward = RemoteReward(f"{bad.url},{played(good(0.25)).url}", retries=4, backoff=0.01)
        assert len(bad.requests) == 1
        assert "HTTP 503" in caplog.text
        assert score(reward, 1).valid.all()
        with pytest.raises(RewardError, match=r"after 5 attempts.*503"):
            RemoteReward(bad.url, retries=4, backoff=0.01)


# -- faults: answers that are no answers -----------------------------------------------------------------------------


def test_nan_is_invalid_and_never_zero(worker):
    result = score(RemoteReward(worker("nan").url))
    assert result.valid.tolist() == [False, True, False, True]
    assert torch.isnan(result.total[::2]).all()
    assert result.details[0]["error"] == "the reward gave no finite number"
    assert result.total[1] == pytest.approx(32 / 255)


def test_a_literal_nan_is_invalid_too(worker):
    result = score(RemoteReward(worker("literal_nan").url))
    assert result.valid.tolist() == [False, True, True, True]
    assert torch.isnan(result.total[0])


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("short", r"HTTP 500.*gave 3 values of total for 4 pictures"),
        ("wrong_length", "3 values of total for 4 pictures"),
        ("wrong_kind", r"total\.0: Input should be a valid number"),
        ("no_list", "valid: Input should be a valid list"),
        ("list", "is list, not an object"),
        ("page", "not JSON: <html>busy"),
    ],
)
def test_answers_that_cannot_be_used(worker, mode, words):
    url = worker(mode).url
    with pytest.raises(RewardError, match=words) as error:
        score(RemoteReward(url, **QUICK))
    assert "\n" not in str(error.value)
    assert_left_out(score(RemoteReward(url, **QUICK, on_error="skip")))


# -- who answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_another_protocol(worker, on_error):
    with pytest.raises(WorkerMismatch, match=r"protocol 2 \(test 1\), we speak 1: install the same flowopd"):
        RemoteReward(worker("protocol").url, on_error=on_error)


def test_a_worker_that_became_another(worker):
    with pytest.raises(WorkerMismatch, match=r"worker has changed: its fingerprint"):
        score(RemoteReward(worker("other_weights").url, on_error="skip"))


def test_another_reward_or_no_worker_at_all(sound):
    with pytest.raises(WorkerMismatch, match="serves the reward 'red', not 'deqa'"):
        RemoteReward(sound.url, reward="deqa")
    with pytest.raises(RewardError, match="HTTP 404"):
        RemoteReward(f"{sound.url}/elsewhere")


def test_workers_of_different_weights(worker, sound):
    other = worker(weights="two")
    with pytest.raises(WorkerMismatch, match=r"red \(model two\).*red \(model one\).*cannot be compared"):
        RemoteReward(f"{sound.url},{other.url}")


def test_one_of_two_may_come_later(sound, caplog):
    reward = RemoteReward(f"http://127.0.0.1:1,{sound.url}", **QUICK)
    assert "no answer" in caplog.text
    assert score(reward).valid.all()


def test_nobody_there():
    with pytest.raises(RewardError, match=r"reward remote: no answer.*refused; start it with: make red"):
        RemoteReward("http://127.0.0.1:1", **QUICK, start="make red")
    with pytest.raises(RewardError, match="start it with: flowopd rewards serve deqa"):
        DeQAReward("http://127.0.0.1:1", **QUICK)


@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_no_token(worker, monkeypatch, on_error):
    monkeypatch.delenv("FLOWOPD_REWARD_TOKEN", raising=False)
    url = worker(token="secret-one").url
    with pytest.raises(RewardError, match=r"HTTP 401.*set FLOWOPD_REWARD_TOKEN to the worker's token"):
        RemoteReward(url, on_error=on_error)
    monkeypatch.setenv("FLOWOPD_REWARD_TOKEN", "another")
    with pytest.raises(RewardError, match="HTTP 401") as error:
        RemoteReward(url, on_error=on_error)
    assert "secret" not in str(error.value)
    assert "another" not in str(error.value)
    monkeypatch.setenv("MINE", "secret-one")
    assert score(RemoteReward(url, token_env="MINE")).valid.all()


@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_oversized_pictures(worker, on_error):
    found = worker("sound", "--max-pixels", "100")
    reward = RemoteReward(found.url, **QUICK, on_error=on_error)
    assert score(reward).valid.all()
    big = pictures(2, size=16)
    if on_error == "skip":
        assert_left_out(reward(big, prompts(2)), 2)
    else:
        with pytest.raises(RewardError, match=r"HTTP 413.*16 x 16 pixels, at most 100"):
            reward(big, prompts(2))
    assert found.calls == 1


@pytest.mark.parametrize("options", [{"on_error": "zero"}, {"timeout": 0}, {"retries": -1}, {"batch": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(RewardError, match="remote:"):
        RemoteReward("http://127.0.0.1:1", **options)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://me:secret@x", ""])
def test_urls_that_cannot_be_used(url):
    with pytest.raises(RewardError) as error:
        RemoteReward(url, **QUICK)
    assert "secret" not in str(error.value)


DESCRIPTION = {"protocol": 1, "reward": "red", "fingerprint": "a", "limits": {"pictures": 2}, "weights": {"model": "x"}}


def test_a_valid_description():
    worker = worker_info("http://h:1", {**DESCRIPTION, "low": 0, "high": None}, "red")
    assert (reward_info(worker).low, reward_info(worker).high) == (0.0, float("inf"))
    assert str(worker) == "red (model x)"


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": {"pictures": "2"}},
        {"limits": {"pictures": 0}},
        {"limits": {"pictures": True}},
        {"limits": []},
        {"weights": "x"},
        {"low": "zero"},
        {"high": []},
        {"high": float("nan")},
    ],
)
def test_a_description_that_is_not_valid(changes):
    with pytest.raises(WorkerMismatch, match="its description is not valid"):
        worker_info("http://h:1", {**DESCRIPTION, **changes})


@pytest.mark.parametrize(
    "tree", [None, [], {}, {"protocol": 1}, {"protocol": 1, "reward": ["red"], "fingerprint": "a"}]
)
def test_a_description_of_something_else(tree):
    with pytest.raises(WorkerMismatch):
        worker_info("http://h:1", tree)
