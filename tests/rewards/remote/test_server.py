"""The worker's server as a real process: batching, limits, refusals, tokens, a graceful stop."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from PIL import Image
from support.workers import ROOT, end, started

from flowopd_cli.rewards.remote import protocol

HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with started("sound", "--max-pixels", "100", "--max-bytes", "20000", folder=tmp_path_factory.mktemp("w")) as found:
        yield found


def png(size=(4, 4), color=(51, 0, 0)):
    return protocol.encode_png(Image.new("RGB", size, color))


def body(*pngs, text="x", **more):
    return {**protocol.score_request("red", pngs, [{"text": text}] * len(pngs)), **more}


def ask(url, path, tree=None, headers=HEADERS, raw=None):
    """Status and parsed answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    content = raw if raw is not None else None if tree is None else json.dumps(tree).encode()
    connection.request("GET" if content is None else "POST", path, content, headers if content is not None else {})
    answer = connection.getresponse()
    with closing(connection):
        text = answer.read().decode()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else {"error": text}


def test_health_and_info(sound):
    assert ask(sound.url, "/health") == (200, {"alive": True, "ready": True, "waiting": 0})
    status, info = ask(sound.url, "/info")
    assert status == 200
    assert {"protocol", "reward", "package", "weights", "fingerprint", "limits"} <= info.keys()


def test_a_score(sound):
    status, answer = ask(sound.url, "/score", body(png(), png(color=(255, 0, 0))))
    assert status == 200
    assert answer["total"] == pytest.approx([0.2, 1.0])
    assert answer["valid"] == [True, True]
    assert ask(sound.url, "/score", body())[1]["total"] == []


@pytest.mark.parametrize(
    ("status", "words", "request_of"),
    [
        (400, "not JSON", lambda: {"raw": b"{"}),
        (400, "not JSON", lambda: {"raw": b"[" * 15000}),
        (400, "not a JSON object", lambda: {"tree": [1]}),
        (400, "items: Input should be a valid list", lambda: {"tree": body(items={})}),
        (400, r"items\.0: not a PNG", lambda: {"tree": body("AAAA")}),
        (400, r"items\.0: not a PNG", lambda: {"tree": body("no base64!")}),
        (400, r"items\.1: not a PNG", lambda: {"tree": body(png(), png()[:60])}),
        (400, r"items\.0\.prompt: Input should be", lambda: {"tree": body(items=[{"png": png(), "prompt": "x"}])}),
        (409, "speaks protocol 1, the request 7", lambda: {"tree": body(png(), protocol=7)}),
        (409, "speaks protocol 1, the request True", lambda: {"tree": body(png(), protocol=True)}),
        (409, "the request 'x{99}$", lambda: {"tree": body(png(), protocol="x" * 5000)}),
        (409, "is for a list$", lambda: {"tree": body(png(), reward=["x" * 5000])}),
        (409, "serves 'red', the request is for 'blue'", lambda: {"tree": body(png(), reward="blue")}),
        (413, "20 x 20 pixels, at most 100", lambda: {"tree": body(png((20, 20)))}),
        (413, "257 pictures in a request", lambda: {"tree": body(items=[{}] * 257)}),
        (413, "a body of '30000' bytes", lambda: {"raw": b"x" * 30000}),
        (413, "a body of more than 20000 bytes", lambda: {"raw": iter([b"x" * 30000])}),
        (415, "application/json", lambda: {"raw": b"{}", "headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_refusals(sound, status, words, request_of):
    calls = sound.calls
    found, answer = ask(sound.url, "/score", **request_of())
    assert found == status
    assert re.search(words, answer["error"])
    assert "\n" not in answer["error"]
    assert sound.calls == calls


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (405, b"PUT /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"),
        (400, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20000 + b"\r\n"),
        (400, b"GET /health HTTP/9.9\r\n\r\n"),
        (400, b"GET /health\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\n\r\n"),
    ],
)
def test_malformed_requests_are_refused(sound, status, request_of):
    with connected(sound.url) as connection:
        connection.sendall(request_of)
        assert received(connection).startswith(b"HTTP/1.1 %d " % status)


def connected(url):
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def received(connection):
    """All that comes until the other side closes."""
    blocks = []
    try:
        while block := connection.recv(1 << 16):
            blocks.append(block)
    except ConnectionResetError:
        pass
    return b"".join(blocks)


def test_control_characters_do_not_reach_the_log(tmp_path):
    with started(folder=tmp_path) as worker:
        assert ask(worker.url, "/a%1b[2Jb")[0] == 404
        assert "\x1b" not in worker.log
        assert r"there is no '/a\x1b[2Jb' here" in worker.log


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_slow_header_is_cut_off(tmp_path, answered_before):
    with (
        started(folder=tmp_path, argv=script_with("header_seconds=0.3")) as worker,
        connected(worker.url) as connection,
    ):
        if answered_before:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(1000)
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        stop = threading.Event()
        threading.Thread(target=drip_until, args=(connection, stop), daemon=True).start()
        assert b"HTTP/" not in received(connection)
        stop.set()
        assert time.monotonic() - began < 3
        assert ask(worker.url, "/health")[0] == 200


def drip_until(connection, stop):
    while not stop.wait(0.05):
        try:
            connection.sendall(b"x")
        except OSError:
            return


def test_connections_are_bounded(tmp_path):
    with started(folder=tmp_path, argv=script_with("connections=3, header_seconds=1")) as worker:
        idle = [connected(worker.url) for _ in range(3)]
        with connected(worker.url) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 503 ")
        wait_for(lambda: answers(worker.url))  # the idle connections are cut off
        for connection in idle:
            connection.close()


def answers(url):
    try:
        return ask(url, "/health")[0] == 200
    except OSError:
        return False


def test_unknown_paths(sound):
    assert ask(sound.url, "/other")[0] == 404
    assert ask(sound.url, "/other", {})[0] == 404


def test_a_body_that_never_comes(tmp_path):
    header = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    argv = script_with("body_seconds=0.2")
    with started(folder=tmp_path, argv=argv) as worker, connected(worker.url) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\n" + header + b"{")
        assert b" 408 " in connection.recv(200)


def script_with(limits):
    code = (
        "from flowopd_cli.rewards.remote.server import serve\n"
        "from flowopd_cli.rewards.remote.settings import Settings\n"
        "from flowopd_cli.rewards.remote.protocol import Limits\n"
        "import sys; sys.path.insert(0, 'tests')\n"
        "from support.workers import Scorer\n"
        "serve(lambda: Scorer('sound', 'none'), Settings(limits=Limits(LIMITS)))\n"
    )
    return [sys.executable, "-c", code.replace("'tests'", repr(str(ROOT / "tests"))).replace("LIMITS", limits)]


def test_the_worker_needs_neither_torch_nor_flowopd(sound):
    code = (
        "import sys, flowopd_cli.rewards.remote.server\n"
        "ours = {m for m in sys.modules if m.startswith('flowopd_cli')}\n"
        "assert not {'torch', 'numpy', 'yaml', 'httpx', 'jaxtyping'} & set(sys.modules)\n"
        "print(*sorted(ours))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    shared = ("flowopd_cli.errors", "flowopd_cli.rewards.remote")
    bare = ("flowopd_cli", "flowopd_cli.rewards")
    assert all(name in bare or name.startswith(shared) for name in done.stdout.split())


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_guards_everything_but_health(tmp_path):
    with started(folder=tmp_path, token="open-sesame") as worker:
        assert ask(worker.url, "/health")[0] == 200
        assert ask(worker.url, "/info")[0] == 401
        assert ask(worker.url, "/score", body(png()))[0] == 401
        assert ask(worker.url, "/score", body(png()), {**HEADERS, "Authorization": "Bearer open"})[0] == 401
        assert ask(worker.url, "/score", body(png()), {**HEADERS, "Authorization": "Bearer open-sesame"})[0] == 200
        assert worker.calls == 1
        assert "open-sesame" not in worker.log


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LocalHost:18085", "[::1]:80", "[::1]"])
def test_a_client_of_this_machine_needs_no_token(sound, host):
    assert ask(sound.url, "/score", body(png()), {**HEADERS, "Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example:18085", "evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", ":80", "::1", "a]", "[x]:1"]
)
def test_a_page_that_calls_this_machine_by_another_name_is_not_answered(sound, host):
    calls = sound.calls
    assert ask(sound.url, "/score", body(png()), {**HEADERS, "Host": host}) == (400, {"error": "Invalid host header"})
    assert sound.calls == calls


def test_with_a_token_any_name_will_do(tmp_path):
    with started(folder=tmp_path, token="open-sesame") as worker:
        headers = {**HEADERS, "Host": "gpu-box:18085", "Authorization": "Bearer open-sesame"}
        assert ask(worker.url, "/score", body(png()), headers)[0] == 200


# -- starting and stopping -------------------------------------------------------------------------------------------


def test_a_worker_is_alive_before_it_is_ready(tmp_path):
    port = free_port()
    options = json.dumps({"mode": "loading", "calls": str(tmp_path / "calls"), "seconds": 1.5})
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "workers.py"),
        "--port",
        str(port),
        "--options",
        options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: listening(port))
        assert ask(url, "/health")[1]["ready"] is False
        status, answer = ask(url, "/score", body(png()))
        assert (status, answer["error"]) == (503, "the reward is still being loaded")
        assert process.stdout.readline().strip() == url
        assert ask(url, "/health")[1]["ready"] is True
    finally:
        end(process)


def test_a_used_port_is_one_line(sound, tmp_path):
    port = str(urlsplit(sound.url).port)
    options = json.dumps({"mode": "sound", "calls": str(tmp_path / "calls")})
    command = [sys.executable, str(ROOT / "tests" / "support" / "workers.py"), "--port", port, "--options", options]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_stop_finishes_what_was_begun(tmp_path):
    with started("slow", folder=tmp_path, seconds=0.6) as worker:
        found = []
        caller = threading.Thread(target=lambda: found.append(ask(worker.url, "/score", body(png()))))
        caller.start()
        wait_for(lambda: worker.calls)
        worker.process.send_signal(signal.SIGTERM)
        caller.join()
        assert found[0][0] == 200
        assert worker.process.wait(5) == 0


def ask_in_vain(url):
    with pytest.raises(OSError):  # noqa: PT011
        ask(url, "/score", body(png()))


def test_a_second_signal_stops_at_once(tmp_path):
    with started("slow", folder=tmp_path, seconds=30) as worker:
        threading.Thread(target=ask_in_vain, args=(worker.url,)).start()
        wait_for(lambda: worker.calls)
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(5) == 128 + signal.SIGTERM


def test_a_worker_ends_with_its_parent(tmp_path):
    """As under ``uv run``, killed outright."""
    options = json.dumps({"mode": "sound", "calls": str(tmp_path / "calls")})
    worker = [sys.executable, str(ROOT / "tests" / "support" / "workers.py"), "--watch-parent", "--options", options]
    code = f"import subprocess; subprocess.Popen({worker!r}).wait()"
    with started(folder=tmp_path, argv=[sys.executable, "-c", code]) as parent:
        port = urlsplit(parent.url).port
        parent.process.kill()
        parent.process.wait()
        wait_for(lambda: not listening(port))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
