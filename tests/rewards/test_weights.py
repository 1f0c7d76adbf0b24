"""Fetched weights: whole, the ones that were meant, and fetched once."""

import hashlib
import http.server
import threading

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.weights import download

WHOLE = bytes(range(256)) * 40
DIGEST = hashlib.sha256(WHOLE).hexdigest()


class Short(http.server.BaseHTTPRequestHandler):
    """Promises the whole file; sends half of it where the path says so."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        self.wfile.write(WHOLE[: len(WHOLE) // 2] if "half" in self.path else WHOLE)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Short)
    made.asked, made.url = [], f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_download_that_breaks_off_is_not_kept(server, tmp_path):
    with pytest.raises(ArtifactError, match="broke off after 5120 of 10240 bytes"):
        download(f"{server.url}/half.bin", sha256=DIGEST)
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(server):
    path = download(f"{server.url}/file.bin", sha256=DIGEST)
    assert path.read_bytes() == WHOLE
    assert download(f"{server.url}/file.bin", sha256=DIGEST) == path
    assert len(server.asked) == 1
    path.write_bytes(WHOLE[:-1])
    assert download(f"{server.url}/file.bin", sha256=DIGEST).read_bytes() == WHOLE
    assert len(server.asked) == 2


def test_another_file_than_the_one_that_was_meant_is_refused(server):
    with pytest.raises(ArtifactError, match="expected 0000"):
        download(f"{server.url}/file.bin", sha256="0000")
