"""Requests of every kind to a scoring worker: each gets a refusal or an answer in time, and the worker lives on."""

import asyncio
import base64
import io
import json
import socket

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.fuzzing import ODD, as_json, both, edited, folder, guarded, mutated
from support.workers import started

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import redacted
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal
from flowopd_cli.rewards.remote.server import Worker
from flowopd_cli.rewards.remote.settings import Settings

STATUSES = {200, 400, 401, 404, 405, 408, 409, 413, 415, 503}
LIMITS = Limits(body_bytes=1 << 20, pixels=100, request_pixels=200, queue_seconds=2, body_seconds=0.1)
METADATA = {"tag": "x", "include": [{"class": "cup", "count": 1}]}
ITEM = protocol.score_item(Image.new("RGB", (4, 4), (51, 0, 0)), Prompt("1", "a cat", "t", METADATA))
PNG, PROMPT = ITEM["png"], ITEM["prompt"]
SCORE = {"protocol": 1, "reward": "red", "items": [ITEM, ITEM]}
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


@pytest.fixture(scope="module")
def application():
    worker = Worker(Settings(limits=LIMITS, linger=0.0))
    worker.start(Red())
    return worker.application


def check_answer(status, content_type, body):
    assert status in STATUSES, body[:300]
    if content_type != "application/json":  # refused before it reached the application
        assert (status, content_type.split(";")[0]) == (400, "text/plain")
        return
    tree = json.loads(body)
    if status != 200:
        assert set(tree) == {"error"}
        assert "\n" not in tree["error"]
        assert "Traceback" not in tree["error"]
        assert redacted(tree["error"]) == tree["error"]


def body_of_a_request(application, sent):
    path, body = sent

    async def post():
        transport = httpx.ASGITransport(application, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=body, headers={"Content-Type": "application/json"})

    with folder() as box, guarded(box):
        answer = asyncio.run(post())
        check_answer(answer.status_code, answer.headers["Content-Type"], answer.content)


def bodies(tree, path):
    return tree.map(lambda sent: (path, as_json(sent)))


PROMPTS = st.lists(st.one_of(mutated(PROMPT), ODD), max_size=3)
SENT = st.one_of(
    bodies(mutated(SCORE), protocol.SCORE),
    bodies(mutated(CHECK), protocol.CHECK),
    bodies(PROMPTS.map(lambda prompts: {**CHECK, "prompts": prompts}), protocol.CHECK),
    bodies(PROMPTS.map(lambda p: {**SCORE, "items": [{"png": PNG, "prompt": x} for x in p]}), protocol.SCORE),
    edited(as_json(SCORE)).map(lambda body: (protocol.SCORE, body)),
    edited(as_json(CHECK)).map(lambda body: (protocol.CHECK, body)),
)
BODIES = given(sent=SENT)
test_body_of_a_request, test_body_of_a_request_at_length = both(BODIES, body_of_a_request, 20, 1500)


def pictures_of_a_request(application, content):
    body = as_json({**SCORE, "items": [{"png": base64.b64encode(content).decode(), "prompt": PROMPT}]})
    body_of_a_request(application, (protocol.SCORE, body))


def palette_png(width, height):
    sink = io.BytesIO()
    Image.new("P", (width, height)).save(sink, "PNG")
    return sink.getvalue()


PNGS = st.sampled_from([palette_png(4, 4), palette_png(30, 30), palette_png(200, 1)]).flatmap(edited)
test_pictures_of_a_request, test_pictures_of_a_request_at_length = both(
    given(content=PNGS), pictures_of_a_request, 10, 500
)


HEADERS = b"Host: localhost\r\nAuthorization: Bearer open\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
WELL_FORMED = st.sampled_from(
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /score HTTP/1.1\r\n" + HEADERS + b"Content-Length: 2\r\n\r\n{}",
        b"POST /check HTTP/1.1\r\n" + HEADERS + CHUNKED,
    ]
)
REQUESTS = given(request=st.one_of(WELL_FORMED.flatmap(edited), st.binary(min_size=1, max_size=80)))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with started(flags={"max_pixels": 100}, folder=tmp_path_factory.mktemp("w"), token="open-sesame") as running:
        yield running


def any_request(worker, request):
    host, _, port = worker.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        raw = received(connection)
    assert b"open-sesame" not in raw
    if raw:
        assert int(raw.split(b" ", 2)[1]) in {100, *STATUSES}, raw[:300]
    health = httpx.get(f"{worker.url}/health", trust_env=False)
    assert health.json() == {"alive": True, "ready": True, "waiting": 0}


def received(connection):
    """Everything up to the end of the connection."""
    blocks = []
    try:
        while block := connection.recv(1 << 16):
            blocks.append(block)
    except ConnectionResetError:
        pass
    return b"".join(blocks)


test_any_request, test_any_request_at_length = both(REQUESTS, any_request, 20, 1400)
