"""The public prompt files, fetched from a local server, and taken from local files."""

import functools
import hashlib
import http.server
import threading
from dataclasses import replace

import pytest

from flowopd_cli.errors import ArtifactError, PromptError, StorageError
from flowopd_cli.prompts import make_geneval, public
from flowopd_cli.prompts.public import SOURCES, PromptFile, PromptSource, fetch
from flowopd_cli.system.json_files import read_json_lines

ONE = b'a sign that says "one"\n'
TWO = b"first\nsecond\n"
REVISION = "c0ffee" + "0" * 34


def sha(data):
    return hashlib.sha256(data).hexdigest()


def source(name, *files):
    return PromptSource(name, "someone/some-prompts", REVISION, files, "prompts of a test")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served in GitHub's place, an empty cache, and sets pinned by sha256, by git's digest, of two files."""
    root = tmp_path / "served" / "someone" / "some-prompts" / REVISION
    (root / "data").mkdir(parents=True)
    (root / "data" / "one.txt").write_bytes(ONE)
    (root / "data" / "two.txt").write_bytes(TWO)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(public, "RAW", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one, two = PromptFile("data/one.txt", "our_one.txt", sha(ONE)), PromptFile("data/two.txt", "two.txt", sha(TWO))
    git = replace(two, pin="66a52ee7a1d803dc57859c3e95ac9dcdc87c0164")
    sources = {"one": source("one", one), "git": source("git", git), "both": source("both", one, two)}
    monkeypatch.setattr(public, "SOURCES", sources)
    yield root, requests
    httpd.shutdown()
    httpd.server_close()


class TestFetch:
    def test_a_file_is_fetched_once_and_checked(self, server, tmp_path):
        warnings = []
        first = fetch("one", warn=warnings.append)
        assert first.path == tmp_path / "cache" / "prompts" / "one-c0ffee000000" / "our_one.txt"
        assert first.path.read_bytes() == ONE
        assert first.verified
        assert first.digests == {"our_one.txt": sha(ONE)}
        assert fetch("one").path == first.path
        assert (len(server[1]), warnings) == (1, [])
        first.path.write_bytes(b"damaged")
        assert fetch("one").path.read_bytes() == ONE
        assert len(server[1]) == 2

    def test_another_digest_is_refused_and_nothing_is_cached(self, server, tmp_path):
        (server[0] / "data" / "one.txt").write_bytes(b"tampered with")
        with pytest.raises(ArtifactError, match=f"sha256 is {sha(b'tampered with')}, expected {sha(ONE)}"):
            fetch("one")
        assert not (tmp_path / "cache").exists()

    def test_a_file_may_be_pinned_by_git_s_own_digest(self, server):
        files = fetch("git")
        assert files.verified
        assert files.path.read_bytes() == TWO
        files.path.unlink()
        (server[0] / "data" / "two.txt").write_bytes(ONE)
        with pytest.raises(ArtifactError, match=r"git's SHA-1 is [0-9a-f]{40}, expected 66a52ee7"):
            fetch("git")

    def test_several_files_are_a_folder_and_out_gets_a_copy(self, server, tmp_path):
        assert sorted(path.name for path in fetch("both").path.iterdir()) == ["our_one.txt", "two.txt"]
        assert fetch("one", out=tmp_path / "out").path == tmp_path / "out" / "our_one.txt"
        assert fetch("both", out=tmp_path / "out").path == tmp_path / "out"
        assert (tmp_path / "out" / "two.txt").read_bytes() == TWO

    def test_a_file_that_is_too_large_is_refused(self, server, monkeypatch):
        monkeypatch.setattr(public, "LARGEST", len(ONE) - 1)
        with pytest.raises(ArtifactError, match="is larger than"):
            fetch("one")

    def test_a_failed_download_is_one_line_with_a_way_out(self, server, monkeypatch):
        (server[0] / "data" / "one.txt").unlink()
        with pytest.raises(ArtifactError, match=r"cannot be fetched \(.*404.*flowopd prompts fetch one --from PATH"):
            fetch("one")
        monkeypatch.setattr(public, "RAW", "http://127.0.0.1:1")
        with pytest.raises(ArtifactError, match="cannot be fetched"):
            fetch("one")

    def test_an_unknown_set_and_a_cache_that_cannot_be_written_are_refused(self, server, tmp_path, monkeypatch):
        with pytest.raises(PromptError, match=r"no prompt set 'onne'.*one"):
            fetch("onne")
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "file"))
        with pytest.raises(StorageError, match=r"^[^(]*/our_one.txt: cannot be written \(Not a directory; "):
            fetch("one")


class TestLocal:
    @pytest.mark.parametrize("name", ["our_one.txt", "data/one.txt", "one.txt"])
    def test_a_folder_may_be_a_clone_a_copy_or_hold_the_file(self, server, tmp_path, name):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(ONE)
        for place in (tmp_path / "mine", path):
            files = fetch("one", local=place)
            assert files.verified
            assert files.path.parent.name == "one-c0ffee000000"
        assert server[1] == []

    def test_another_file_gives_a_warning_and_is_used_where_it_is(self, server, tmp_path):
        warnings, mine = [], tmp_path / "mine.txt"
        mine.write_bytes(b"my own prompt\n")
        files = fetch("one", local=mine, warn=warnings.append)
        assert (files.path, files.verified) == (mine, False)
        assert warnings == [f"{mine}: sha256 is {sha(mine.read_bytes())}, that of one is {sha(ONE)}: used all the same"]
        assert not (tmp_path / "cache").exists()

    def test_a_missing_file_is_named(self, server, tmp_path):
        with pytest.raises(ArtifactError, match="no such file or folder of one"):
            fetch("one", local=tmp_path / "none")
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "one.txt").write_bytes(ONE)
        with pytest.raises(ArtifactError, match=r"has no two\.txt nor data/two\.txt"):
            fetch("both", local=tmp_path / "part")
        with pytest.raises(ArtifactError, match="no such folder with the 2 files of both"):
            fetch("both", local=tmp_path / "part" / "one.txt")


def test_the_table_has_full_commits_and_unique_names():
    files = [file for source in SOURCES.values() for file in source.files]
    assert all(len(s.revision) == 40 and int(s.revision, 16) for s in SOURCES.values())
    assert all(len(file.pin) in (40, 64) and int(file.pin, 16) for file in files)
    assert len({file.name for file in files}) == len(files)


@pytest.fixture
def get(tmp_path, monkeypatch):
    """Fetches from GitHub into an empty cache; skips without a network."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))

    def get(name, warn):
        try:
            return fetch(name, warn=warn)
        except ArtifactError as error:
            if "cannot be fetched" in str(error) and "error '" not in str(error):
                pytest.skip(f"the public file of {name} cannot be reached")
            raise

    return get


@pytest.mark.hub
@pytest.mark.parametrize("name", list(SOURCES))
def test_the_public_files_are_where_the_table_says(get, name):
    assert get(name, print).verified


@pytest.mark.hub
def test_geneval_s_evaluation_prompts_are_all_held_out(get):
    rows = read_json_lines(get("geneval", print).path)
    assert len(rows) == 553
    assert all(make_geneval.held_out(row) and make_geneval.describe(row) == row["prompt"] for row in rows)
