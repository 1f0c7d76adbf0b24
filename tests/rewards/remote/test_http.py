"""JSON over HTTP against a real server on the loopback: what is retried, what is not, and what an error says."""

import json
import socket
import threading
import time

import pytest
from support.scripted import (
    cut_short,
    drip,
    drip_chunk_size,
    drip_error,
    drip_header,
    drip_without_length,
    drop,
    hang,
)

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.http import EndpointError, InvalidResponse, RetryPolicy, join_url, request_json

QUICK = RetryPolicy(timeout=5, retries=3, backoff=0.01, max_pause=0.05)


def test_a_payload_is_posted_as_json(serve):
    server = serve((200, {"ok": 1}))
    assert request_json(server.url + "/v1/", "/score", {"a": [1]}, {"Authorization": "Bearer t"}, QUICK) == {"ok": 1}
    assert request_json([server.url], "info", policy=QUICK) == {"ok": 1}
    first, second = server.requests
    assert first[:2] == ("POST", "/v1/score")
    assert json.loads(first[3]) == {"a": [1]}
    assert (first[2]["content-type"], first[2]["authorization"]) == ("application/json", "Bearer t")
    assert second[:2] == ("GET", "/info")


@pytest.mark.parametrize(
    "fault",
    [
        (408, "x"),
        (425, "x"),
        (429, "x"),
        (500, "x"),
        (502, "x"),
        (503, "x"),
        (504, "x"),
        drop,
        cut_short,
        (200, b"<p>"),
    ],
    ids=lambda fault: getattr(fault, "__name__", str(fault)),
)
def test_passing_faults_are_retried(serve, fault):
    server = serve(fault, fault, (200, {"ok": 1}))
    assert request_json(server.url, "x", {}, policy=QUICK) == {"ok": 1}
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 422, 501])
def test_other_statuses_are_final(serve, status):
    server = serve((status, {"error": "not\nhere"}, {"Location": "http://127.0.0.1:1/elsewhere"}))
    with pytest.raises(EndpointError) as caught:
        request_json(server.url, "x", {}, policy=QUICK)
    assert len(server.requests) == 1
    assert caught.value.status == status
    assert f"{server.url}/x: HTTP {status}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exhaustion_names_endpoint_status_and_body_but_not_the_token(serve):
    server = serve((503, b"Bearer s3cr3t-token was not liked " + b"z" * 5000))
    with pytest.raises(RewardError) as caught:
        request_json(server.url, "x", {}, {"Authorization": "Bearer s3cr3t-token"}, QUICK)
    text = str(caught.value)
    assert len(server.requests) == QUICK.retries + 1
    assert f"4 attempts: {server.url}/x: HTTP 503: Bearer *** was not liked" in text
    assert "s3cr3t" not in text
    assert len(text) < 400


@pytest.mark.parametrize("fault", [hang, drip, drip_header, drip_chunk_size, drip_without_length])
def test_an_attempt_ends_at_its_timeout(serve, fault):
    server = serve(fault)
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"2 attempts.*no answer within 0\.3 s") as caught:
        request_json(server.url, "x", {}, policy=RetryPolicy(timeout=0.3, retries=1, backoff=0.01))
    assert caught.value.status is None
    assert caught.value.slow
    assert time.monotonic() - started < 3


def test_an_error_page_that_drips_does_not_hold_its_status_back(serve):
    started = time.monotonic()
    with pytest.raises(EndpointError, match="HTTP 403"):
        request_json(serve(drip_error).url, "x", {}, policy=RetryPolicy(timeout=0.3, retries=0))
    assert time.monotonic() - started < 3


def test_a_tls_handshake_that_drips_ends_in_time():
    over = threading.Event()

    def drip_handshake():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x16\x03\x03\x3f\xff")
            for _ in range(200):
                if over.wait(0.05):
                    return
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip_handshake, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(EndpointError, match=r"no answer within 0\.3 s"):
            request_json(
                f"https://127.0.0.1:{listener.getsockname()[1]}", "x", policy=RetryPolicy(timeout=0.3, retries=0)
            )
        assert time.monotonic() - started < 3
        over.set()


def test_an_answer_of_too_many_levels_is_no_answer(serve):
    with pytest.raises(EndpointError, match=r"2 attempts.*its answer is not JSON: \[\[\["):
        request_json(serve((200, b"[" * 300_000)).url, "x", {}, policy=RetryPolicy(retries=1, backoff=0.01))


def test_an_answer_that_cannot_be_parsed_is_retried(serve):
    def parse(tree):
        if tree != [1]:
            raise InvalidResponse("want a 1")
        return "good"

    bad, good = serve((200, [2])), serve((200, [3]), (200, [1]))
    assert request_json([bad.url, good.url], "x", {}, None, QUICK, parse) == "good"
    assert (len(bad.requests), len(good.requests)) == (2, 2)
    with pytest.raises(EndpointError, match=r"4 attempts.*want a 1") as caught:
        request_json(bad.url, "x", {}, None, QUICK, parse)
    assert caught.value.status == 200


def test_the_next_endpoint_answers_for_a_broken_one(serve):
    bad, good = serve((500, "x")), serve((200, [1]))
    started = time.monotonic()
    assert request_json([bad.url, good.url], "x", {}, policy=RetryPolicy(retries=0, backoff=10)) == [1]
    assert time.monotonic() - started < 2
    good.close()
    with pytest.raises(EndpointError) as caught:
        request_json([bad.url, good.url], "x", {}, policy=QUICK)
    assert bad.url in str(caught.value)
    assert good.url in str(caught.value)


def test_retry_after_is_kept_within_bounds(serve):
    asks = serve((429, "x", {"Retry-After": "1"}), (200, 1))
    request_json(asks.url, "x", {}, policy=RetryPolicy(backoff=0.01, max_pause=0.4))
    assert 0.35 < asks.times[1] - asks.times[0] < 0.9
    shrugs = serve((429, "x", {"Retry-After": "soon"}), (200, 1))
    request_json(shrugs.url, "x", {}, policy=RetryPolicy(backoff=0.01, max_pause=0.4))
    assert shrugs.times[1] - shrugs.times[0] < 0.3


def test_pauses_grow(serve):
    server = serve((500, "x"))
    with pytest.raises(EndpointError):
        request_json(server.url, "x", {}, policy=RetryPolicy(retries=3, backoff=0.1, max_pause=5))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert 0.04 < gaps[0] < 0.3
    assert gaps[2] > 0.19


def test_an_answer_beyond_the_limit_is_refused(serve):
    server = serve((200, b'"' + b"x" * 200_000 + b'"'))
    with pytest.raises(EndpointError, match="larger than 1000 bytes"):
        request_json(server.url, "x", {}, policy=RetryPolicy(max_bytes=1000))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "file:///etc/passwd", "http://", "http://u:s3cr3t@h/", "http://h:x/", "http://h?k=s3cr3t"],
)
def test_unusable_urls(url):
    with pytest.raises(RewardError, match="endpoint") as caught:
        join_url(url, "x")
    assert "s3cr3t" not in str(caught.value)


def test_no_endpoint_and_a_token_that_cannot_be_sent(serve):
    with pytest.raises(RewardError, match="no endpoint"):
        request_json([], "x", {})
    with pytest.raises(RewardError, match="cannot be sent") as caught:
        request_json(serve((200, 1)).url, "x", {}, {"Authorization": "Bearer s3cr3t\n"})
    assert "s3cr3t" not in str(caught.value)


def test_loopback_is_never_reached_through_a_proxy(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert request_json(serve((200, 1)).url, "x", policy=QUICK) == 1


def test_retries_leave_the_seeded_generators_alone(serve):
    import random

    random.seed(7)
    expected = random.Random(7).random()
    request_json(serve((500, "x"), (200, 1)).url, "x", {}, policy=QUICK)
    assert random.random() == expected
