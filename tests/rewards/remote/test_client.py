"""The client against real worker processes: what they score, and every way they fail. No score becomes zero."""

import logging
import time
from contextlib import ExitStack

import pytest
import torch
from support.scripted import Scripted, drop, hang
from support.workers import started

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.remote.client import DeQAReward, RemoteReward, WorkerMismatch, reward_info, worker_info

QUICK = {"retries": 1, "backoff": 0.01}
SHORT = {"timeout": 0.4, **QUICK}
INFO = {"protocol": 1, "reward": "red", "fingerprint": "f", "weights": {"model": "x"}}
DOWN = (500, {"error": "down"})


@pytest.fixture
def worker(tmp_path):
    """Starts workers and ends them with the test."""
    with ExitStack() as stack:
        yield lambda mode="sound", **options: stack.enter_context(started(mode, folder=tmp_path, **options))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with started(folder=tmp_path_factory.mktemp("sound")) as worker:
        yield worker


@pytest.fixture
def scripted(serve):
    """A server that describes itself as a worker and then plays replies to ``/score``, the last for ever."""
    return lambda *replies: serve((200, INFO), *replies)


def posts(server: Scripted):
    return sum(method == "POST" for method, *_ in server.requests)


def good(*totals):
    return 200, {**INFO, "total": list(totals), "scores": {}, "valid": [True] * len(totals), "details": []}


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
    assert reward(torch.zeros(0, 3, 8, 8), []).total.shape == (0,)


def test_the_identity_of_a_worker(sound):
    reward = RemoteReward(sound.url)
    assert (reward.info.name, reward.info.low, reward.info.high) == ("red", 0.0, float("inf"))
    assert reward.weights == {"model": "one", "worker": "test 1"}


def test_prompts_are_refused_by_the_worker_itself(sound):
    reward = RemoteReward(sound.url)
    reward.check(prompts(3))
    with pytest.raises(PromptError, match="'x': is bad"):
        reward.check([Prompt("x", "bad", "t")])


@pytest.mark.parametrize(("limits", "most"), [({"body_bytes": 9000}, 5), ({"request_pixels": 3 * 24 * 24 + 1}, 3)])
def test_requests_keep_to_the_limits(worker, limits, most):
    limited = worker(limits=limits)
    images = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert RemoteReward(limited.url, batch=100)(images, prompts(6)).valid.all()
    assert max(limited.batches) <= most


def test_two_workers_share_the_work(worker, sound):
    other, before = worker(), sum(sound.batches)
    assert score(RemoteReward(f"{sound.url}, {other.url}", batch=1), 6).valid.all()
    assert sum(other.batches) + sum(sound.batches) - before == 6
    assert other.calls >= 1


def test_a_request_that_the_client_gave_up_is_not_scored(worker):
    gated = worker("gate")
    with pytest.raises(RewardError, match="no answer within"):
        score(RemoteReward(gated.url, timeout=0.3, retries=3, backoff=0.01))
    begun = gated.calls
    assert begun <= 1
    gated.open_gate()
    assert score(RemoteReward(gated.url)).valid.all()
    assert gated.calls == begun + 1


# -- faults: killed, hanging, slow, 500 ------------------------------------------------------------------------------


def test_killed_in_the_middle(worker):
    assert_left_out(score(RemoteReward(worker("kill").url, **QUICK, on_error="skip")))
    reward = RemoteReward(worker("kill").url, **QUICK)
    with pytest.raises(RewardError, match=r"^reward red: no answer after 2 attempts[^\n]*$"):
        score(reward)


def test_failover_when_one_is_killed(worker, sound):
    reward = RemoteReward(f"{worker('kill').url},{sound.url}", **QUICK, batch=1, on_error="fail")
    result = score(reward, 6)
    assert result.valid.all()
    assert result.total.tolist() == pytest.approx([i * 32 / 255 for i in range(6)])


def test_a_worker_that_hangs_is_tried_once_where_another_answers(scripted):
    hanging, sound = scripted(hang), scripted(good(0.5, 0.5))
    reward = RemoteReward(f"{hanging.url},{sound.url}", **QUICK, timeout=1.5, batch=2)
    for _ in range(4):
        assert score(reward).valid.all()
    assert posts(hanging) <= 1


def test_hanging(scripted):
    began = time.monotonic()
    assert_left_out(score(RemoteReward(scripted(hang).url, **SHORT, on_error="skip")))
    with pytest.raises(RewardError, match=r"no answer within 0\.4 s"):
        score(RemoteReward(scripted(hang).url, **SHORT))
    assert time.monotonic() - began < 5


def test_passing_faults_are_retried(scripted):
    server = scripted(hang, DOWN, good(0.5))
    assert score(RemoteReward(server.url, **{**SHORT, "retries": 2}), 1).valid.all()
    assert posts(server) == 3


def test_server_errors_are_reported(worker):
    broken = worker("error")
    with pytest.raises(RewardError, match="after 1 attempt:"):
        score(RemoteReward(broken.url, on_error="fail"))
    assert broken.calls == 1
    with pytest.raises(RewardError, match=r"after 3 attempts.*HTTP 500.*RuntimeError: the detector broke"):
        score(RemoteReward(broken.url, retries=2, backoff=0.01))
    assert broken.calls == 4
    assert "Traceback" in broken.log


def test_skip_is_logged_once_and_when_it_is_over(scripted, caplog):
    reward = RemoteReward(scripted(DOWN, DOWN, good(*[0.5] * 4)).url, on_error="skip", retries=0)
    with caplog.at_level(logging.WARNING, "flowopd.rewards"):
        assert_left_out(score(reward))
        assert_left_out(score(reward))
        assert score(reward).valid.all()
    assert [message.split(":")[1].strip() for message in caplog.messages] == [
        "pictures are left out of their groups",
        "the worker answers again",
    ]


def test_with_skip_a_dead_worker_is_retried_once_until_it_answers(scripted):
    server = scripted(DOWN)
    reward = RemoteReward(server.url, **QUICK, on_error="skip", batch=1)
    assert_left_out(score(reward))
    assert posts(server) == 2 + 1 + 1 + 1
    server.replies = [good(0.5)]
    assert score(reward).valid.all()
    assert posts(server) == 5 + 4
    server.replies = [DOWN, good(0.5)]
    assert score(reward).valid.all()


def test_with_skip_a_hanging_worker_is_tried_once_a_call(scripted):
    server = scripted(hang)
    reward = RemoteReward(server.url, **SHORT, on_error="skip", batch=1)
    assert_left_out(score(reward))
    assert posts(server) == 2
    assert_left_out(score(reward))
    assert posts(server) == 3


def test_with_skip_a_broken_connection_costs_its_own_pictures_alone(scripted):
    reward = RemoteReward(scripted(drop, good(0.5)).url, on_error="skip", retries=0, batch=1)
    assert score(reward).valid.tolist() == [False, True, True, True]


def test_an_absent_worker_is_tried_once_where_another_answers(serve, scripted, caplog):
    bad = serve((503, "loading"))
    reward = RemoteReward(f"{bad.url},{scripted(good(0.25)).url}", retries=4, backoff=0.01)
    assert len(bad.requests) == 1
    assert "HTTP 503" in caplog.text
    assert score(reward, 1).valid.all()
    with pytest.raises(RewardError, match=r"after 5 attempts.*503"):
        RemoteReward(bad.url, retries=4, backoff=0.01)


# -- faults: invalid answers -----------------------------------------------------------------------------------------


def test_nan_is_invalid_and_never_zero(worker, scripted):
    literal = scripted(good(float("nan"), 32 / 255, 0.5, 0.75))
    for url, valid in ((worker("nan").url, [False, True] * 2), (literal.url, [False, True, True, True])):
        result = score(RemoteReward(url))
        assert result.valid.tolist() == valid
        assert torch.isnan(result.total).logical_not().tolist() == valid
        assert result.details[0]["error"] == "the reward gave no finite number"
        assert result.total[1] == pytest.approx(32 / 255)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {**INFO, "total": [0.5] * 3, "valid": [True] * 3, "scores": {"width": [8.0] * 4}},
            "4 values of width for 3 t",
        ),
        ({**INFO, "total": [0.5] * 3, "valid": [True] * 3}, "3 totals for 4 pictures"),
        ({**INFO, "total": ["good"] * 4, "valid": [True] * 4}, r"total\.0: Input should be a number"),
        ({**INFO, "total": [0.5] * 4, "valid": None}, "valid: Input should be a valid list"),
        ([1, 2], "is list, not an object"),
        (b"<html>busy</html>", "not JSON: <html>busy"),
    ],
)
def test_answers_that_cannot_be_used(scripted, content, words):
    server = scripted((200, content))
    with pytest.raises(RewardError, match=words) as error:
        score(RemoteReward(server.url, **QUICK))
    assert "\n" not in str(error.value)
    assert posts(server) == 2
    server.replies = [(200, INFO), (200, content)]
    assert_left_out(score(RemoteReward(server.url, **QUICK, on_error="skip")))


# -- the identity of the worker --------------------------------------------------------------------------------------


def test_another_protocol(serve):
    with pytest.raises(
        WorkerMismatch, match=r"of protocol 1 .*should be less than or equal to 1.*install the same flowopd"
    ):
        RemoteReward(serve((200, {**INFO, "protocol": 2})).url, on_error="skip")


@pytest.mark.parametrize(
    ("reply", "words"),
    [((200, {**INFO, "fingerprint": "0"}), "has changed: its fingerprint"), ((409, "another reward"), "HTTP 409")],
)
def test_a_worker_that_became_another(scripted, reply, words):
    with pytest.raises(WorkerMismatch, match=words):
        score(RemoteReward(scripted(reply).url, on_error="skip"))


def test_another_reward_or_no_worker_at_all(sound):
    with pytest.raises(WorkerMismatch, match="serves the reward 'red', not 'deqa'"):
        DeQAReward(sound.url)
    with pytest.raises(RewardError, match="HTTP 404"):
        RemoteReward(f"{sound.url}/elsewhere")


def test_a_worker_s_reader_is_the_engine(serve):
    info = {**INFO, "weights": {"reader": "rapidocr-3/x"}}
    assert RemoteReward(serve((200, info)).url, **QUICK).engine == "rapidocr-3/x"


def test_workers_of_different_weights(worker, sound):
    with pytest.raises(WorkerMismatch, match=r"red \(model two\).*red \(model one\).*cannot be compared"):
        RemoteReward(f"{sound.url},{worker(weights='two').url}")


def test_no_worker_answers():
    with pytest.raises(RewardError, match=r"reward remote: no answer.*refused$"):
        RemoteReward("http://127.0.0.1:1", **QUICK)
    with pytest.raises(RewardError, match=r"reward deqa: .*refused; start it with: flowopd rewards serve deqa"):
        DeQAReward("http://127.0.0.1:1", **QUICK)


def test_no_token(worker, monkeypatch):
    monkeypatch.delenv("FLOWOPD_REWARD_TOKEN", raising=False)
    url = worker(token="secret-one").url
    with pytest.raises(RewardError, match=r"HTTP 401.*set FLOWOPD_REWARD_TOKEN to the worker's token"):
        RemoteReward(url, on_error="skip")
    monkeypatch.setenv("FLOWOPD_REWARD_TOKEN", "another")
    with pytest.raises(RewardError, match="HTTP 401") as error:
        RemoteReward(url)
    assert "secret" not in str(error.value)
    assert "another" not in str(error.value)
    monkeypatch.setenv("MINE", "secret-one")
    assert score(RemoteReward(url, token_env="MINE")).valid.all()


def test_oversized_pictures(worker):
    small, big = worker(flags={"max_pixels": 100}), pictures(2, size=16)
    assert score(RemoteReward(small.url)).valid.all()
    assert_left_out(RemoteReward(small.url, on_error="skip")(big, prompts(2)), 2)
    with pytest.raises(RewardError, match=r"HTTP 413.*16 x 16 pixels, at most 100"):
        RemoteReward(small.url)(big, prompts(2))
    assert small.calls == 1


@pytest.mark.parametrize("options", [{"on_error": "zero"}, {"timeout": 0}, {"retries": -1}, {"batch": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(RewardError, match="remote:"):
        RemoteReward("http://127.0.0.1:1", **options)


def test_a_valid_description():
    worker = worker_info("http://h:1", {**INFO, "low": 0, "high": None}, "red")
    assert (reward_info(worker).low, reward_info(worker).high) == (0.0, float("inf"))
    assert str(worker) == "red (model x)"


@pytest.mark.parametrize(
    "description",
    [
        *(
            None,
            [],
            {},
            {**INFO, "protocol": True},
            {**INFO, "reward": ["red"]},
            {**INFO, "limits": {"pixels": "many"}},
        ),
        *({**INFO, "limits": []}, {**INFO, "weights": "x"}, {**INFO, "low": "zero"}, {**INFO, "high": []}),
    ],
)
def test_a_description_that_is_not_valid(description):
    with pytest.raises(WorkerMismatch, match="not a scoring worker of protocol 1"):
        worker_info("http://h:1", description)
