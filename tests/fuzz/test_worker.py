"""Whatever comes to a scoring worker: an answer in JSON, in time, and the worker lives on."""

import io
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.fuzzing import ODD, TEXTS, as_json, edited, few, folder, guarded, many, mutated
from support.workers import started

from flowopd_cli.errors import redacted
from flowopd_cli.rewards.remote import handler
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal
from flowopd_cli.rewards.remote.service import Service, Settings

STATUSES = {200, 400, 401, 404, 405, 408, 409, 411, 413, 414, 415, 421, 422, 431, 501, 503, 505}
LIMITS = Limits(body_bytes=1 << 20, pictures=4, pixels=100, request_pixels=200, queue_seconds=2, body_seconds=0.1)
PNG = wire.encode_png(Image.new("RGB", (4, 4), (51, 0, 0)))
PROMPT = {"id": "1", "text": "a cat", "task": "t", "metadata": {"tag": "x", "include": [{"class": "cup", "count": 1}]}}
SCORE = wire.score_request("red", [PNG, PNG], [PROMPT, PROMPT])
CHECK = {"protocol": 1, "reward": "red", "prompts": [PROMPT]}


class Red:
    """Red pictures score high; the text ``bad`` cannot be scored."""

    info = {"reward": "red", "weights": {}, "options": {}}  # noqa: RUF012

    def check(self, prompts):
        for prompt in prompts:
            if prompt["text"] == "bad":
                raise Refusal(422, "is bad")

    def __call__(self, pictures, prompts):
        self.check(prompts)
        red = [picture.getpixel((0, 0))[0] / 255 for picture in pictures]
        return Answer(red, {}, [True] * len(red), [dict(prompt["metadata"]) for prompt in prompts])


class Host:
    """The server that a connection came to."""

    def __init__(self, token):
        self.service = Service(Settings(token=token, limits=LIMITS, linger=0.0))
        self.service.start(Red())

    def header_came(self, request):
        return True


HOSTS = {token: Host(token) for token in (None, "open-sesame")}


class Impatient(handler.Handler):
    """The handler, whose clients are all here already."""

    timeout = 0.1


def answered(request, token, leaves):
    """All that a connection gives back for these bytes; ``leaves``: the client says that nothing more will come."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        theirs.sendall(request)
        if leaves:
            theirs.shutdown(socket.SHUT_WR)
        Impatient(ours, ("127.0.0.1", 1), HOSTS[token])
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: theirs.recv(1 << 16), b""))


@pytest.fixture(autouse=True, scope="module")
def _hasty():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler, "IDLE_SECONDS", 0.2)
        patch.setattr(handler, "DRAIN_SECONDS", 0.05)
        yield
    for host in HOSTS.values():
        host.service.finish()


def judged(request, raw):
    """The parsed answer, checked for what every answer has."""
    if not raw:
        whole = b"\n\r\n" in request or b"\n\n" in request
        assert not whole or not request.split(b"\n")[0].strip(), "a whole request gets an answer"
        return None
    head, _, body = raw.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    protocol, status, _ = first.split(b" ", 2)
    assert protocol == b"HTTP/1.1", first
    assert int(status) in STATUSES, raw[:300]
    headers = dict(field.lower().split(b": ", 1) for field in fields)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"connection"] == b"close"
    assert b"open-sesame" not in raw
    if request.split(b" ")[0] == b"HEAD":
        return None
    assert int(headers[b"content-length"]) == len(body)
    tree = json.loads(body)
    if int(status) != 200:
        assert set(tree) == {"error"}
        assert tree["error"].isprintable() or ascii(tree["error"])
        assert "\n" not in tree["error"]
        assert "Traceback" not in tree["error"]
        assert redacted(tree["error"]) == tree["error"]
    return tree


def request_of(method, path, headers, body):
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def bodies(tree, path):
    """``tree`` sent as it should be."""
    return tree.map(lambda sent: (path, as_json(sent)))


def body_of_a_request(sent, token, length):
    path, body = sent
    size = {"right": len(body), "short": max(0, len(body) - 7), "long": len(body) + 7}.get(length, length)
    headers = [("Content-Type", "application/json"), ("Content-Length", size), ("Host", "127.0.0.1:1")]
    headers += [("Authorization", "Bearer open-sesame")] if token else []
    request = request_of("POST", path, headers, body)
    with folder() as box, guarded(box):
        judged(request, answered(request, token, leaves=False))


PROMPTS = st.lists(st.one_of(mutated(PROMPT), ODD), max_size=3)
SENT = st.one_of(
    bodies(mutated(SCORE), wire.SCORE),
    bodies(mutated(CHECK), wire.CHECK),
    bodies(PROMPTS.map(lambda prompts: {**CHECK, "prompts": prompts}), wire.CHECK),
    bodies(PROMPTS.map(lambda p: {**SCORE, "items": [{"png": PNG, "prompt": x} for x in p]}), wire.SCORE),
    edited(as_json(SCORE)).map(lambda body: (wire.SCORE, body)),
    edited(as_json(CHECK)).map(lambda body: (wire.CHECK, body)),
)
LENGTHS = st.sampled_from(["right"] * 8 + ["short", "long", "-1", "", "1e3", "9" * 400, "\u00b2", "0x10", "+5"])
BODIES = given(sent=SENT, token=st.sampled_from([None, "open-sesame"]), length=LENGTHS)
test_body_of_a_request = few(BODIES, body_of_a_request, 20)
test_body_of_a_request_at_length = many(BODIES, body_of_a_request, 1500)


def pictures_of_a_request(content):
    import base64

    body = as_json({**SCORE, "items": [{"png": base64.b64encode(content).decode(), "prompt": PROMPT}]})
    body_of_a_request((wire.SCORE, body), None, "right")


def sized(width, height):
    sink = io.BytesIO()
    Image.new("P", (width, height)).save(sink, "PNG")
    return sink.getvalue()


DRAWN = st.sampled_from([sized(4, 4), sized(30, 30), sized(200, 1)]).flatmap(edited)
test_pictures_of_a_request = few(given(content=DRAWN), pictures_of_a_request)
test_pictures_of_a_request_at_length = many(given(content=DRAWN), pictures_of_a_request, 500)


def any_request(request, token, leaves):
    with folder() as box, guarded(box):
        judged(request, answered(request, token, leaves))


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Host", "Content-Length", "Content-Type", "Authorization", "Transfer-Encoding", "Expect", "X"]
        ),
        st.one_of(
            TEXTS.map(lambda text: text.replace("\n", " ")),
            st.sampled_from(["localhost", "5", "application/json", "Bearer open-sesame", "chunked", "100-continue"]),
        ),
    ),
    max_size=5,
)
WELL_FORMED = st.builds(
    request_of,
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "get", "", "X" * 300]),
    st.one_of(st.sampled_from(["/health", "/info", "/score", "/check", "*", "http://h/health"]), TEXTS),
    FIELDS,
    st.binary(max_size=30),
)
SOUND = request_of("POST", "/score", [("Content-Type", "application/json"), ("Content-Length", "2")], b"{}")
REQUESTS = given(
    request=st.one_of(WELL_FORMED, edited(SOUND), st.binary(max_size=80)),
    token=st.sampled_from([None, "open-sesame"]),
    leaves=st.booleans(),
)
test_any_request = few(REQUESTS, any_request, 20)
test_any_request_at_length = many(REQUESTS, any_request, 1200)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with started("sound", "--max-pixels", "100", folder=tmp_path_factory.mktemp("w")) as found:
        yield found


def over_a_socket(worker, request):
    host, _, port = worker.url.removeprefix("http://").partition(":")
    for sent in (request, b"GET /health HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=15) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            raw = received(connection)
        found = judged(sent, raw)
    assert found == {"alive": True, "ready": True, "waiting": 0}, "the worker lives on"


def received(connection):
    """All that comes until the other side closes."""
    blocks = []
    try:
        while block := connection.recv(1 << 16):
            blocks.append(block)
    except ConnectionResetError:
        pass
    return b"".join(blocks)


OVER = given(request=st.one_of(WELL_FORMED, edited(SOUND), st.binary(min_size=1, max_size=80)))
test_over_a_socket = few(OVER, over_a_socket, 7)
test_over_a_socket_at_length = many(OVER, over_a_socket, 200)
