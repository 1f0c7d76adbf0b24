"""JSON over HTTP against a real server on the loopback: what is retried, what is not, and what an error says."""

import json
import random
import socket
import threading
import time

import pytest
from support.scripted import cut_short, drip, drip_chunk_size, drip_header, drip_without_length, drop, hang

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.http import EndpointError, Endpoints, join_url

QUICK = {"timeout": 5, "retries": 3, "backoff": 0.01, "max_pause": 0.05}
TOKEN = {"Authorization": "Bearer s3cr3t-token"}


def endpoints(*servers, headers=None, **policy):
    return Endpoints([getattr(server, "url", server) for server in servers], headers or {}, **{**QUICK, **policy})


def test_a_payload_is_posted_as_json(serve):
    server = serve((200, {"ok": 1}))
    both = endpoints(server.url + "/v1/", headers=TOKEN)
    assert both.request("/score", {"a": [1]}) == both.request("info") == {"ok": 1}
    first, second = server.requests
    assert first[:2] == ("POST", "/v1/score")
    assert json.loads(first[3]) == {"a": [1]}
    assert (first[2]["content-type"], first[2]["authorization"]) == ("application/json", "Bearer s3cr3t-token")
    assert second[:2] == ("GET", "/v1/info")


@pytest.mark.parametrize(
    "fault",
    [*((status, "x") for status in (408, 425, 429, 500, 502, 503, 504)), drop, cut_short, (200, b"<p>")],
    ids=lambda fault: getattr(fault, "__name__", str(fault)),
)
def test_passing_faults_are_retried(serve, fault):
    server = serve(fault, fault, (200, {"ok": 1}))
    assert endpoints(server).request("x", {}) == {"ok": 1}
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 501])
def test_other_statuses_are_final(serve, status):
    server = serve((status, {"error": "not\nhere"}, {"Location": "http://127.0.0.1:1/elsewhere"}))
    with pytest.raises(EndpointError) as error:
        endpoints(server).request("x", {})
    assert len(server.requests) == 1
    assert error.value.status == status
    assert f"{server.url}/x: HTTP {status}" in str(error.value)
    assert "\n" not in str(error.value)


def test_exhaustion_names_endpoint_status_and_body_but_not_the_token(serve):
    server = serve((503, b"s3cr3t-token was not liked " + b"z" * 5000))
    with pytest.raises(RewardError) as error:
        endpoints(server, headers=TOKEN).request("x", {})
    text = str(error.value)
    assert len(server.requests) == QUICK["retries"] + 1
    assert f"4 attempts: {server.url}/x: HTTP 503: *** was not liked" in text
    assert "s3cr3t" not in text
    assert len(text) < 400


@pytest.mark.parametrize("fault", [hang, drip, drip_header, drip_chunk_size, drip_without_length])
def test_an_attempt_ends_at_its_timeout(serve, fault):
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"2 attempts.*no answer within 0\.3 s") as error:
        endpoints(serve(fault), timeout=0.3, retries=1, backoff=0.01).request("x", {})
    assert error.value.status is None
    assert time.monotonic() - started < 3


def test_a_tls_handshake_that_drips_ends_in_time():
    over = threading.Event()

    def drip_handshake():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x3f\xff")
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip_handshake, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(EndpointError, match=r"no answer within 0\.3 s"):
            endpoints(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3, retries=0).request("x")
        assert time.monotonic() - started < 3
        over.set()


def test_an_answer_of_too_many_levels_is_no_answer(serve):
    with pytest.raises(EndpointError, match=r"its answer is not JSON: \[\[\["):
        endpoints(serve((200, b"[" * 300_000))).request("x", {})


def test_an_answer_that_cannot_be_parsed_is_retried(serve):
    def parse(tree):
        if tree != [1]:
            raise ValueError("want a 1")
        return "good"

    bad, good = serve((200, [2])), serve((200, [3]), (200, [1]))
    assert endpoints(bad, good).request("x", {}, parse) == "good"
    assert (len(bad.requests), len(good.requests)) == (2, 2)
    with pytest.raises(EndpointError, match=r"4 attempts.*want a 1") as error:
        endpoints(bad).request("x", {}, parse)
    assert error.value.status == 200


def test_the_next_endpoint_answers_for_a_broken_one_which_then_rests(serve):
    bad, good = serve((500, "x")), serve((200, [1]))
    both = endpoints(bad, good, retries=0, backoff=10)
    started = time.monotonic()
    assert [both.request("x", {}) for _ in range(4)] == [[1]] * 4
    assert time.monotonic() - started < 2
    assert (len(bad.requests), len(good.requests)) == (1, 4)
    good.close()
    with pytest.raises(EndpointError) as error:
        both.request("x", {})
    assert bad.url in str(error.value)
    assert good.url in str(error.value)


@pytest.mark.parametrize("pause", ["1", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_retry_after_is_kept_within_bounds(serve, pause):
    bounded = serve((429, "x", {"Retry-After": pause}), (200, 1))
    endpoints(bounded, max_pause=0.4).request("x", {})
    assert 0.35 < bounded.times[1] - bounded.times[0] < 0.9
    unreadable = serve((429, "x", {"Retry-After": "soon"}), (200, 1))
    endpoints(unreadable, max_pause=0.4).request("x", {})
    assert unreadable.times[1] - unreadable.times[0] < 0.3


def test_pauses_grow(serve):
    server = serve((500, "x"))
    with pytest.raises(EndpointError):
        endpoints(server, retries=3, backoff=0.1, max_pause=5).request("x", {})
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert 0.04 < gaps[0] < 0.3
    assert gaps[2] > 0.19


def test_an_answer_beyond_the_limit_is_refused(serve):
    server = serve((200, b'"' + b"x" * 200_000 + b'"'))
    with pytest.raises(EndpointError, match="larger than 1000 bytes"):
        endpoints(server, max_bytes=1000).request("x", {})
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "file:///etc/passwd", "http://", "http://u:s3cr3t@h/", "http://h:x/", "http://h?k=s3cr3t"],
)
def test_unusable_urls(url):
    with pytest.raises(RewardError, match="endpoint") as error:
        join_url(url, "x")
    assert "s3cr3t" not in str(error.value)


def test_no_endpoint_and_a_token_that_cannot_be_sent(serve):
    with pytest.raises(RewardError, match="no endpoint"):
        endpoints()
    with pytest.raises(RewardError, match="cannot be sent") as error:
        endpoints(serve((200, 1)), headers={"Authorization": "Bearer s3cr3t\n"}).request("x", {})
    assert "s3cr3t" not in str(error.value)


def test_loopback_is_never_reached_through_a_proxy(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert endpoints(serve((200, 1))).request("x") == 1


def test_retries_leave_the_seeded_generators_alone(serve):
    random.seed(7)
    expected = random.Random(7).random()
    endpoints(serve((500, "x"), (200, 1))).request("x", {})
    assert random.random() == expected
