"""The worker's server as a real process: batching, limits, refusals, tokens, a graceful stop."""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.workers import ROOT, Scorer, end, started

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote import protocol as wire
from flowopd_cli.rewards.remote.batching import Batcher
from flowopd_cli.rewards.remote.hosts import is_loopback
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal
from flowopd_cli.rewards.remote.server import check_open, read_token
from flowopd_cli.rewards.remote.service import Service, Settings

IMPATIENT = Limits(queue_seconds=0.01)
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with started("sound", "--max-pixels", "100", "--max-bytes", "20000", folder=tmp_path_factory.mktemp("w")) as found:
        yield found


def png(size=(4, 4), color=(51, 0, 0)):
    return wire.encode_png(Image.new("RGB", size, color))


def body(*pngs, text="x", **more):
    return {**wire.score_request("red", pngs, [{"text": text}] * len(pngs)), **more}


def ask(url, path, tree=None, headers=HEADERS, raw=None):
    """Status and parsed answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    content = raw if raw is not None else None if tree is None else json.dumps(tree).encode()
    connection.request("GET" if content is None else "POST", path, content, headers if content is not None else {})
    answer = connection.getresponse()
    with closing(connection):
        return answer.status, json.loads(answer.read())


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
        (400, "want a list", lambda: {"tree": body(items={})}),
        (400, r"items\.0: not a PNG", lambda: {"tree": body("AAAA")}),
        (400, r"items\.0: not a PNG", lambda: {"tree": body("no base64!")}),
        (400, r"items\.1: not a PNG", lambda: {"tree": body(png(), png()[:60])}),
        (400, r"items\.0: want a prompt", lambda: {"tree": body(items=[{"png": png(), "prompt": "x"}])}),
        (409, "speaks protocol 1, the request 7", lambda: {"tree": body(png(), protocol=7)}),
        (409, "speaks protocol 1, the request True", lambda: {"tree": body(png(), protocol=True)}),
        (409, "the request 'x{99}$", lambda: {"tree": body(png(), protocol="x" * 5000)}),
        (409, "wants a list$", lambda: {"tree": body(png(), reward=["x" * 5000])}),
        (409, "serves 'red', the request wants 'blue'", lambda: {"tree": body(png(), reward="blue")}),
        (413, "20 x 20 pixels, at most 100", lambda: {"tree": body(png((20, 20)))}),
        (413, "257 pictures in a request", lambda: {"tree": body(items=[{}] * 257)}),
        (413, "a body whose length has 5000 digits", lambda: {"raw": b"", "headers": {"Content-Length": "9" * 5000}}),
        (413, "a body of 30000 bytes", lambda: {"raw": b"x" * 30000}),
        (415, "application/json", lambda: {"raw": b"{}", "headers": {"Content-Type": "text/plain"}}),
        (411, "length", lambda: {"raw": iter([b"{}"]), "headers": {**HEADERS, "Transfer-Encoding": "chunked"}}),
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
        (501, b"PUT /score HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"),
        (414, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"),
        (431, b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        (505, b"GET /health HTTP/9.9\r\n\r\n"),
        (400, b"GET /health what HTTP/1.1\r\n\r\n"),
        (505, b"GET /health\r\n\r\n"),
        (505, b"GET  HTTP/1.1\r\n\r\n"),
    ],
)
def test_what_is_no_request_is_refused_in_json_too(sound, status, request_of):
    address = urlsplit(sound.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request_of)
        head, _, said = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/json" in head
    assert json.loads(said)["error"]


def received(connection):
    """All that comes until the other side closes."""
    blocks = []
    try:
        while block := connection.recv(1 << 16):
            blocks.append(block)
    except ConnectionResetError:
        pass
    return b"".join(blocks)


def test_a_log_moves_no_cursor(tmp_path):
    with started(folder=tmp_path) as worker:
        address = urlsplit(worker.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(b"GET /a\x1b[2Jb HTTP/1.1\r\n\r\n")
            assert b"404" in received(connection)
        assert "\x1b" not in worker.log
        assert r"there is no '/a\x1b[2Jb' here" in worker.log


def test_a_header_that_drips_is_cut_off(tmp_path):
    with started(folder=tmp_path, argv=script_with("header_seconds=0.3")) as worker:
        address = urlsplit(worker.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
            stop = threading.Event()
            threading.Thread(target=lambda: drip_until(connection, stop), daemon=True).start()
            said = connection.recv(1000)
            stop.set()
        assert b" 408 " in said
        assert ask(worker.url, "/health")[0] == 200


def drip_until(connection, stop):
    while not stop.wait(0.05):
        try:
            connection.sendall(b"x")
        except OSError:
            return


def test_connections_are_bounded(tmp_path):
    with started(folder=tmp_path, argv=script_with("connections=2")) as worker:
        address = urlsplit(worker.url)
        idle = [socket.create_connection((address.hostname, address.port), timeout=10) for _ in range(2)]
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            said = received(connection)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert json.loads(said.partition(b"\r\n\r\n")[2]) == {"error": "too many connections"}
        for connection in idle:
            connection.close()
        wait_for(lambda: answers(worker.url))


def answers(url):
    try:
        return ask(url, "/health")[0] == 200
    except OSError:
        return False


def test_unknown_paths(sound):
    assert ask(sound.url, "/other")[0] == 404
    assert ask(sound.url, "/other", {})[0] == 404


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_a_picture_bomb_is_refused_before_it_is_unpacked(sound):
    header = chunk(b"IHDR", (12000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]))
    picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9000)))
    bomb = base64.b64encode(picture).decode()
    status, answer = ask(sound.url, "/score", body(bomb))
    assert status == 413
    assert "12000 x 12000" in answer["error"]


def test_small_files_of_many_pixels_are_refused_before_any_is_unpacked(monkeypatch):
    """256 black pictures of 4.2 million pixels are 4 MB of PNG and 3 GB of memory."""
    packed = zlib.compress(bytes(2048 * (1 + 3 * 2048)), 9)
    header = chunk(b"IHDR", (2048).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]))
    picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    black = base64.b64encode(picture).decode()
    assert wire.decode_pngs([black], Limits())[0].getextrema() == ((0, 0),) * 3
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("a picture was unpacked"))
    request = json.dumps(body(*[black] * 256)).encode()
    assert len(request) < Limits.body_bytes
    with pytest.raises(Refusal, match="1073741824 pixels in a request, at most 33554432") as refusal:
        wire.read_request(request, "red", Limits())
    assert refusal.value.status == 413


def test_one_picture_of_the_largest_size_always_fits():
    limits = Limits(pixels=64, request_pixels=10)
    assert limits.told()["request_pixels"] == 64
    assert len(wire.decode_pngs([png((8, 8))], limits)) == 1
    with pytest.raises(Refusal, match="128 pixels in a request, at most 64"):
        wire.decode_pngs([png((8, 8))] * 2, limits)


def test_what_else_a_picture_carries_is_not_kept():
    buffer = io.BytesIO()
    texts = PngInfo()
    texts.add_text("note", "x" * 1000, zip=True)
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=texts)
    (found,) = wire.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())
    assert found.info == {}


def test_a_body_that_never_comes(tmp_path):
    with started(folder=tmp_path, argv=script_with("body_seconds=0.2")) as worker:
        address = urlsplit(worker.url)
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            head = b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            connection.sendall(head)
            assert b" 408 " in connection.recv(200)


def script_with(limits):
    code = (
        "from flowopd_cli.rewards.remote.server import serve\n"
        "from flowopd_cli.rewards.remote.service import Settings\n"
        "from flowopd_cli.rewards.remote.protocol import Limits\n"
        "import sys; sys.path.insert(0, 'tests')\n"
        "from support.workers import Scorer\n"
        "serve(lambda: Scorer('sound', 'none'), Settings(limits=Limits(LIMITS)))\n"
    )
    return [sys.executable, "-c", code.replace("'tests'", repr(str(ROOT / "tests"))).replace("LIMITS", limits)]


def test_the_worker_needs_neither_torch_nor_flowopd(sound):
    code = (
        "import sys, flowopd_cli.rewards.remote.main\n"
        "ours = {m for m in sys.modules if m.startswith('flowopd_cli')}\n"
        "assert not {'torch', 'numpy', 'yaml', 'pydantic', 'jaxtyping'} & set(sys.modules)\n"
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(RewardError, match="needs a token: set FLOWOPD_REWARD_TOKEN"):
        check_open(host, None)
    check_open(host, "token")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host):
    assert is_loopback(host)
    check_open(host, None)


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LocalHost:18085", "[::1]:80", "[::1]"])
def test_a_client_of_this_machine_needs_no_token(sound, host):
    assert ask(sound.url, "/score", body(png()), {**HEADERS, "Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example:18085", "evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", ":80", "::1", "a]", "[x]:1"]
)
def test_a_page_that_calls_this_machine_by_another_name_is_not_answered(sound, host):
    calls = sound.calls
    status, answer = ask(sound.url, "/score", body(png()), {**HEADERS, "Host": host})
    assert status == 421
    assert "known as localhost alone" in answer["error"]
    assert sound.calls == calls


def test_with_a_token_any_name_will_do(tmp_path):
    with started(folder=tmp_path, token="open-sesame") as worker:
        headers = {**HEADERS, "Host": "gpu-box:18085", "Authorization": "Bearer open-sesame"}
        assert ask(worker.url, "/score", body(png()), headers)[0] == 200


def test_where_tokens_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", "abc")
    assert read_token("MINE") == "abc"
    assert read_token("NOBODYS") is None
    (tmp_path / "token").write_text("from-file\n")
    assert read_token("MINE", tmp_path / "token") == "from-file"
    (tmp_path / "empty").write_text("\n")
    for path, words in (("empty", "visible ASCII"), ("none", "cannot be read")):
        with pytest.raises(RewardError, match=words):
            read_token("MINE", tmp_path / path)


# -- starting and stopping -------------------------------------------------------------------------------------------


def test_a_worker_is_alive_before_it_is_ready(tmp_path):
    port = free_port()
    told = json.dumps({"mode": "loading", "calls": str(tmp_path / "calls"), "seconds": 1.5})
    command = [sys.executable, str(ROOT / "tests" / "support" / "workers.py"), "--port", str(port), "--options", told]
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
    told = json.dumps({"mode": "sound", "calls": str(tmp_path / "calls")})
    command = [sys.executable, str(ROOT / "tests" / "support" / "workers.py"), "--port", port, "--options", told]
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
    told = json.dumps({"mode": "sound", "calls": str(tmp_path / "calls")})
    worker = [sys.executable, str(ROOT / "tests" / "support" / "workers.py"), "--watch-parent", "--options", told]
    code = f"import subprocess; subprocess.Popen({worker!r}).wait()"
    with started(folder=tmp_path, argv=[sys.executable, "-c", code]) as parent:
        port = urlsplit(parent.url).port
        parent.process.kill()
        parent.process.wait()
        wait_for(lambda: not listening(port))


# -- batching --------------------------------------------------------------------------------------------------------


class Dot(int):
    """A number in place of a picture, as many pixels wide."""

    height = 1
    width = property(int)


def batcher(score, **limits):
    return Batcher(score, max_batch=4, linger=0.05, limits=Limits(**limits))


def together(batch, *requests):
    """Submit from one thread each; results or errors in order."""
    found = [None] * len(requests)

    def submit(i):
        try:
            found[i] = batch.submit(list(map(Dot, requests[i])), [{"text": str(i)}] * len(requests[i]))
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=submit, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_callers_are_joined_up_to_the_largest_batch():
    sizes = []

    def score(pictures, prompts):
        sizes.append(len(pictures))
        return Answer([float(p) for p in pictures], {"twice": [2.0 * p for p in pictures]}, [True] * len(pictures))

    answers = together(batcher(score), [1], [2], [3, 4], [5, 6, 7])
    assert [answer.total for answer in answers] == [[1], [2], [3, 4], [5, 6, 7]]
    assert answers[2].scores == {"twice": [6, 8]}
    assert sum(sizes) == 7
    assert len(sizes) < 4
    assert max(sizes) <= 4


def test_one_callers_mistake_stays_its_own():
    def score(pictures, prompts):
        if any(p == 0 for p in pictures):
            raise ValueError("nought")
        return Answer([float(p) for p in pictures], {}, [True] * len(pictures))

    good, bad, other = together(batcher(score), [1], [0], [2])
    assert (good.total, other.total) == ([1], [2])
    assert isinstance(bad, ValueError)


def test_a_full_queue_and_a_slow_one_are_refused():
    gate = threading.Event()

    def score(pictures, prompts):
        gate.wait(10)
        return Answer([1.0] * len(pictures), {}, [True] * len(pictures))

    slow = batcher(score, waiting_pixels=8, queue_seconds=0.3)
    first = threading.Thread(target=lambda: slow.submit([Dot(0)], [{}]))
    first.start()
    wait_for(lambda: slow.waiting == 0)
    time.sleep(0.1)
    waits, refused = together(slow, [2] * 4, [2] * 4)
    reasons = sorted(str(error) for error in (waits, refused))
    assert reasons == ["4 pictures of 8 pixels wait already", "waited 0.3 s in the queue"]
    assert slow.waiting == 0
    gate.set()
    first.join()
    slow.close()
    with pytest.raises(Refusal, match="stopping"):
        slow.submit([Dot(0)], [{}])


def test_a_request_that_gives_up_while_a_batch_lingers_takes_nobody_with_it():
    score = Batcher(lambda pictures, prompts: Answer([1.0], {}, [True]), max_batch=4, linger=1.0, limits=IMPATIENT)
    with pytest.raises(Refusal, match=r"waited 0\.01 s"):
        score.submit([Dot(0)], [{}])
    time.sleep(1.2)  # the batch has lingered, and nobody is left in it
    score._limits = Limits(queue_seconds=20)
    assert score.submit([Dot(0)], [{}]).total == [1.0]


def test_a_reward_that_wants_to_exit_ends_neither_its_thread_nor_its_callers():
    def score(pictures, prompts):
        if pictures == [0]:
            raise SystemExit("bye")
        return Answer([1.0], {}, [True])

    batch = batcher(score)
    (found,) = together(batch, [0])
    assert isinstance(found, RuntimeError)
    assert str(found) == "SystemExit: bye"
    assert batch.submit([Dot(1)], [{}]).total == [1.0]


def test_a_worker_is_ready_only_while_somebody_scores(tmp_path):
    service = Service(Settings())
    service.start(Scorer("sound", tmp_path / "calls"))
    assert service.health()["ready"] is True
    service.finish()
    wait_for(lambda: not service.ready)
    assert service.health()["ready"] is False
    with pytest.raises(Refusal, match="stopping"):
        service.describe()


@pytest.mark.parametrize(("linger", "seconds"), [(1.0, 0.3), (0.5, 0.5), (0.0, 0.0), (-1.0, 3.0), (0.0, float("inf"))])
def test_times_by_which_nothing_could_be_scored_are_refused(linger, seconds):
    with pytest.raises(RewardError, match=r"--queue-seconds .* must be above --linger"):
        Settings(linger=linger, limits=Limits(queue_seconds=seconds))


# -- the wire --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 33)])
def test_pictures_travel_unchanged(size):
    image = Image.effect_noise(size, 90).convert("RGB")
    image.putpixel((0, 0), (255, 0, 7))
    assert wire.decode_pngs([wire.encode_png(image)], Limits())[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_png_become_rgb(mode):
    buffer = io.BytesIO()
    Image.new(mode, (3, 2)).save(buffer, "PNG")
    (found,) = wire.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())
    assert (found.mode, found.size) == ("RGB", (3, 2))


def test_other_formats_are_no_pictures():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG")
    with pytest.raises(Refusal, match="not a PNG"):
        wire.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())


def test_numbers_that_are_none():
    answer = wire.cleaned(Answer([1.0, float("inf"), 2.0], {"x": [float("nan"), 1.0, None]}, [True, True, False]), 3)
    assert answer.total == [1.0, None, None]
    assert answer.scores == {"x": [None, 1.0, None]}
    assert answer.valid == [True, False, False]
    assert [("error" in detail) for detail in answer.details] == [False, True, False]
    assert b"NaN" not in wire.to_bytes(answer.scores)


def test_fingerprints_look_at_what_changes_scores():
    one = wire.fingerprint("red", {"model": "a@1"}, {"device": "cpu", "soft": True})
    assert wire.fingerprint("red", {"model": "a@1"}, {"device": "cuda", "batch": 9, "soft": True}) == one
    assert wire.fingerprint("red", {"model": "a@2"}, {"soft": True}) != one
    assert wire.fingerprint("red", {"model": "a@1"}, {"soft": False}) != one


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
