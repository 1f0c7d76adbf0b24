"""The worker's server as a real process: limits, refusals, tokens, a graceful stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from PIL import Image
from support.workers import ROOT, command_of, end, started

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.isolated import PACKAGE, SHARED

JSON = {"Content-Type": "application/json"}
SMALL = {"max_pixels": 100, "max_bytes": 20000}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with started(folder=tmp_path_factory.mktemp("w"), flags=SMALL) as worker:
        yield worker


def png(size=(4, 4), color=(51, 0, 0)):
    return protocol.score_item(Image.new("RGB", size, color), Prompt("", "x", ""))["png"]


def body(*pngs, **more):
    items = [{"png": png, "prompt": {"text": "x"}} for png in pngs]
    return {"protocol": 1, "reward": "red", "items": items, **more}


def post(worker, json=None, **options):
    return httpx.post(f"{worker.url}/score", json=json, timeout=10, **options)


def get(worker, path, **options):
    return httpx.get(worker.url + path, timeout=10, **options)


def test_health_and_info(sound):
    assert get(sound, "/health").json() == {"alive": True, "ready": True, "waiting": 0}
    info = get(sound, "/info").json()
    assert {"protocol", "reward", "package", "weights", "fingerprint", "limits"} <= info.keys()
    assert info["limits"]["pixels"] == 100


def test_a_score(sound):
    answer = post(sound, body(png(), png(color=(255, 0, 0)))).json()
    assert answer["total"] == pytest.approx([0.2, 1.0])
    assert answer["valid"] == [True, True]
    assert post(sound, body()).json()["total"] == []


@pytest.mark.parametrize(
    ("status", "words", "options"),
    [
        (400, "Invalid JSON", {"content": b"{"}),
        (400, "recursion limit", {"content": b"[" * 15000}),
        (400, "should be an object", {"json": [1]}),
        (400, "items: Input should be a valid array", {"json": body(items={})}),
        (400, r"items\.0\.png: not a PNG", {"json": body("AAAA")}),
        (400, r"items\.0\.png: not a PNG", {"json": body("no base64!")}),
        (400, r"items\.1\.png: not a PNG", {"json": body(png(), png()[:60])}),
        (400, r"items\.0\.prompt: Input should be", {"json": body(items=[{"png": png(), "prompt": "x"}])}),
        (400, "protocol: Input should be a valid integer", {"json": body(protocol=True)}),
        (
            400,
            r"items\.0\.prompt\.text: Input should be",
            {"json": body(items=[{"png": png(), "prompt": {"text": 5}}])},
        ),
        (409, "protocol is 1, that of the request 7", {"json": body("AAAA", protocol=7)}),
        (409, "reward is 'red', that of the request 'x{99}$", {"json": body(png(), reward="x" * 5000)}),
        (413, "20 x 20 pixels, at most 100", {"json": body(png((20, 20)))}),
        (413, "at most 256 items", {"json": body(items=[{}] * 257)}),
        (413, "a body of more than 20000 bytes", {"content": b"x" * 30000}),
        (413, "a body of more than 20000 bytes", {"content": iter([b"x" * 30000])}),
        (415, "application/json", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_refusals(sound, status, words, options):
    calls = sound.calls
    answer = post(sound, **{"headers": JSON, **options})
    error = answer.json()["error"]
    assert answer.status_code == status
    assert re.search(words, error)
    assert "\n" not in error
    assert sound.calls == calls


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (405, b"PUT /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"),
        (400, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n"),
        (400, b"GET /health HTTP/9.9\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\n\r\n"),
    ],
)
def test_malformed_requests_are_refused(sound, status, request_of):
    with connected(sound) as connection:
        connection.sendall(request_of)
        assert connection.recv(100).startswith(b"HTTP/1.1 %d " % status)


def connected(worker):
    address = urlsplit(worker.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def test_control_characters_do_not_reach_the_log(tmp_path):
    with started(folder=tmp_path) as worker:
        assert get(worker, "/a%1b[2Jb").status_code == 404
        assert "\x1b" not in worker.log
        assert r"Not Found: '/a\x1b[2Jb'" in worker.log


def test_connections_are_bounded(tmp_path):
    with started(folder=tmp_path, limits={"connections": 3}) as worker:
        idle = [connected(worker) for _ in range(3)]
        wait_for(lambda: get(worker, "/health").status_code == 503)
        for connection in idle:
            connection.close()
        wait_for(lambda: get(worker, "/health").status_code == 200)


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_header_that_never_ends(tmp_path, answered_before):
    with started(folder=tmp_path, limits={"header_seconds": 1}) as worker, connected(worker) as connection:
        if answered_before:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: b'"waiting":0}' in connection.recv(1000))
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert connection.recv(1000) == b""  # closed; the socket's own timeout is 10 s


def test_a_body_is_refused_by_its_length_before_it_arrives(sound):
    with connected(sound) as connection:
        header = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 20001\r\n\r\n"
        connection.sendall(b"POST /score HTTP/1.1\r\n" + header)
        assert b" 413 " in connection.recv(200)


def test_a_body_that_never_comes(tmp_path):
    header = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    with started(folder=tmp_path, limits={"body_seconds": 0.2}) as worker, connected(worker) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\n" + header + b"{")
        assert b" 408 " in connection.recv(200)


def test_the_worker_needs_neither_torch_nor_the_rest_of_flowopd():
    code = (
        "import sys, flowopd_cli.rewards.remote.server\n"
        "assert not {'torch', 'numpy', 'yaml', 'httpx', 'jaxtyping'} & set(sys.modules)\n"
        "print(*(m.__file__ for name, m in sys.modules.items() if name.startswith('flowopd_cli')))"
    )
    files = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert {Path(file) for file in files.split()} <= {file for pattern in SHARED for file in PACKAGE.glob(pattern)}


def test_a_token_guards_everything_but_health(tmp_path):
    with started(folder=tmp_path, token="open-sesame") as worker:
        right = {"Authorization": "Bearer open-sesame", "Host": "gpu-box:18085"}
        assert get(worker, "/health").status_code == 200
        assert get(worker, "/info").status_code == 401
        assert post(worker, body(png())).status_code == 401
        assert post(worker, body(png()), headers={"Authorization": "Bearer open"}).status_code == 401
        assert worker.calls == 0
        assert post(worker, body(png()), headers=right).status_code == 200
        assert "open-sesame" not in worker.log


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LocalHost:18085", "[::1]:80", "[::1]"])
def test_a_client_of_this_machine_needs_no_token(sound, host):
    assert get(sound, "/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:18085", "evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", ":80", "::1", "a]", "[x]:1"]
)
def test_a_page_that_calls_this_machine_by_another_name_is_not_answered(sound, host):
    calls = sound.calls
    answer = post(sound, body(png()), headers={"Host": host})
    assert (answer.status_code, answer.text) == (400, "Invalid host header")
    assert sound.calls == calls


# -- starting and stopping -------------------------------------------------------------------------------------------


@pytest.fixture
def loading(tmp_path):
    """The process and the URL of a worker that loads for a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = command_of("loading", tmp_path / "calls", {"port": port}, seconds=1.5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    wait_for(lambda: listening(port))
    yield process, f"http://127.0.0.1:{port}"
    end(process)


def test_a_worker_is_alive_before_it_is_ready(loading):
    process, url = loading
    assert httpx.get(f"{url}/health").json()["ready"] is False
    answer = httpx.post(f"{url}/score", json=body(png()))
    assert (answer.status_code, answer.json()) == (503, {"error": "the reward is still being loaded"})
    assert process.stdout.readline().strip() == url
    assert httpx.get(f"{url}/health").json()["ready"] is True


def test_a_worker_that_loads_stops_at_once(loading):
    process, url = loading
    assert httpx.get(f"{url}/health").json()["ready"] is False
    process.terminate()
    assert process.wait(1) == 0


def test_a_used_port_is_one_line(sound, tmp_path):
    port = urlsplit(sound.url).port
    command, environment = command_of("sound", tmp_path / "calls", {"port": port}), {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=30, env={**os.environ, **environment}
    )
    assert process.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1


def test_a_stop_finishes_what_was_begun_and_closes_idle_connections(tmp_path):
    with started("slow", folder=tmp_path, seconds=0.6) as worker, httpx.Client() as idle:
        assert idle.get(f"{worker.url}/health").status_code == 200
        answers = []
        caller = threading.Thread(target=lambda: answers.append(post(worker, body(png()))))
        caller.start()
        wait_for(lambda: worker.calls)
        worker.process.send_signal(signal.SIGTERM)
        caller.join()
        assert answers[0].status_code == 200
        assert worker.process.wait(5) == 0


def test_a_second_signal_stops_at_once(tmp_path):
    with started("slow", folder=tmp_path, seconds=30) as worker, connected(worker) as connection:
        content = httpx.Request("POST", worker.url, json=body(png())).content
        header = f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        connection.sendall(header.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        wait_for(lambda: worker.calls)
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(5) == 128 + signal.SIGTERM


def test_a_worker_ends_with_its_parent(tmp_path):
    """As under ``uv run``, killed outright."""
    command = command_of("sound", tmp_path / "calls", {"watch_parent": True})
    code = f"import subprocess; subprocess.Popen({command!r}).wait()"
    with started(folder=tmp_path, argv=[sys.executable, "-c", code]) as parent:
        parent.process.kill()
        parent.process.wait()
        wait_for(lambda: not listening(urlsplit(parent.url).port))


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
