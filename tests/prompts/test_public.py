"""The public prompt files, fetched from a server of the test's own, and taken from local ones."""

import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.prompts import make_geneval as prompt_geneval
from flowopd_cli.prompts import public as prompt_files
from flowopd_cli.prompts.public import SOURCES, PromptFile, PromptSource, fetch

ONE = b'a sign that says "one"\n'
TWO = b"first\nsecond\n"


def sha(data):
    return hashlib.sha256(data).hexdigest()


def source(name, *files):
    return PromptSource(name, "someone/some-prompts", "c0ffee" + "0" * 34, files, "prompts of a test")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served in GitHub's place, an empty cache, and three sets: pinned, without digest, of two files."""
    root = tmp_path / "served" / "someone" / "some-prompts" / ("c0ffee" + "0" * 34)
    (root / "data").mkdir(parents=True)
    (root / "data" / "one.txt").write_bytes(ONE)
    (root / "data" / "two.txt").write_bytes(TWO)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(prompt_files, "RAW", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one, two = PromptFile("data/one.txt", "our_one.txt", sha(ONE), 1), PromptFile("data/two.txt", "two.txt", sha(TWO))
    sets = {
        "one": source("one", one),
        "loose": source("loose", replace(two, sha256=None, lines=3)),
        "both": source("both", one, two),
    }
    monkeypatch.setattr(prompt_files, "SOURCES", sets)
    yield root, asked
    httpd.shutdown()
    httpd.server_close()


class TestFetch:
    def test_a_file_is_fetched_once_checked_and_kept(self, server, tmp_path):
        said = []
        first = fetch("one", tell=said.append)
        assert first.path == tmp_path / "cache" / "prompts" / "one-c0ffee000000" / "our_one.txt"
        assert first.path.read_bytes() == ONE
        assert first.verified
        assert first.digests == {"our_one.txt": sha(ONE)}
        assert fetch("one").path == first.path
        assert len(server[1]) == 1
        assert said == []

    def test_a_copy_that_was_damaged_in_the_cache_is_fetched_again(self, server):
        path = fetch("one").path
        path.write_bytes(b"damaged")
        assert fetch("one").path.read_bytes() == ONE
        assert len(server[1]) == 2

    def test_another_digest_is_refused_and_nothing_is_kept(self, server, tmp_path):
        (server[0] / "data" / "one.txt").write_bytes(b"tampered with\n")
        with pytest.raises(
            ArtifactError, match=f"sha256 is {sha(b'tampered with' + bytes([10]))}, expected {sha(ONE)}"
        ):
            fetch("one")
        assert not (tmp_path / "cache").exists()

    def test_without_a_known_digest_it_says_that_nothing_was_verified(self, server):
        said = []
        found = fetch("loose", tell=said.append)
        assert not found.verified
        assert found.path.read_bytes() == TWO
        assert "no sha256 is known for data/two.txt at c0ffee000000: not verified" in said[0]
        assert "has 2 lines, 3 were expected" in said[1]

    def test_several_files_are_a_folder(self, server):
        found = fetch("both")
        assert sorted(path.name for path in found.path.iterdir()) == ["our_one.txt", "two.txt"]

    def test_a_copy_can_be_had_elsewhere(self, server, tmp_path):
        assert fetch("one", out=tmp_path / "out").path == tmp_path / "out" / "our_one.txt"
        assert fetch("both", out=tmp_path / "out").path == tmp_path / "out"
        assert (tmp_path / "out" / "two.txt").read_bytes() == TWO

    def test_what_the_net_does_not_give_is_one_line_with_a_way_out(self, server, monkeypatch):
        (server[0] / "data" / "one.txt").unlink()
        with pytest.raises(ArtifactError, match=r"cannot be fetched \(.*404.*flowopd prompts fetch one --from PATH"):
            fetch("one")
        monkeypatch.setattr(prompt_files, "RAW", "http://127.0.0.1:1")
        with pytest.raises(ArtifactError, match="cannot be fetched"):
            fetch("one")

    def test_a_file_beyond_all_bounds_is_refused(self, server, monkeypatch):
        monkeypatch.setattr(prompt_files, "LARGEST", 10)
        with pytest.raises(ArtifactError, match="is larger than"):
            fetch("one")

    def test_an_unknown_set_is_refused_with_near_names(self, server):
        with pytest.raises(PromptError, match=r"no prompt set 'onne'.*one"):
            fetch("onne")

    def test_a_cache_that_cannot_be_written_is_one_line(self, server, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "file"))
        with pytest.raises(ArtifactError, match=r"cannot be written.*FLOWOPD_CACHE"):
            fetch("one")


class TestLocal:
    @pytest.mark.parametrize("name", ["our_one.txt", "data/one.txt", "one.txt"])
    def test_a_folder_may_be_a_clone_a_copy_or_hold_the_bare_file(self, server, tmp_path, name):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(ONE)
        for place in (tmp_path / "mine", path):
            found = fetch("one", local=place)
            assert found.verified
            assert found.path.parent.name == "one-c0ffee000000"
        assert server[1] == []

    def test_another_file_is_remarked_on_and_used_where_it_is(self, server, tmp_path):
        said, mine = [], tmp_path / "mine.txt"
        mine.write_bytes(b"my own prompt\n")
        found = fetch("one", local=mine, adopt=True, tell=said.append)
        assert found.path == mine
        assert not found.verified
        assert said == [f"{mine}: sha256 is {sha(mine.read_bytes())}, that of one is {sha(ONE)}: used all the same"]
        assert not (tmp_path / "cache").exists()

    def test_a_file_that_cannot_be_verified_reaches_the_cache_only_when_adopted(self, server, tmp_path):
        mine = tmp_path / "mine.txt"
        mine.write_bytes(b"a\nb\nc\n")
        said = []
        assert fetch("loose", local=mine, tell=said.append).path == mine
        assert len(said) == 1
        kept = fetch("loose", local=mine, adopt=True, tell=said.append)
        assert kept.path.read_bytes() == mine.read_bytes()
        assert not kept.verified
        assert fetch("loose", tell=said.append).path == kept.path

    def test_what_is_missing_is_named(self, server, tmp_path):
        with pytest.raises(ArtifactError, match="no such file or folder of one"):
            fetch("one", local=tmp_path / "none")
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "one.txt").write_bytes(ONE)
        with pytest.raises(ArtifactError, match=r"has no two\.txt nor data/two\.txt"):
            fetch("both", local=tmp_path / "part")
        with pytest.raises(ArtifactError, match="no such folder with the 2 files of both"):
            fetch("both", local=tmp_path / "part" / "one.txt")


class TestTable:
    def test_the_issue_s_sets_are_there_at_full_commits(self):
        assert {"geneval", "ocr", "t2i-compbench", "pickscore", "drawbench"} <= set(SOURCES)
        assert all(len(s.revision) == 40 and int(s.revision, 16) for s in SOURCES.values())

    def test_digests_are_whole_and_names_are_unique(self):
        files = [file for source in SOURCES.values() for file in source.files]
        assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in files if file.sha256)
        assert len({file.name for file in files}) == len(files)
        assert len(SOURCES["t2i-compbench"].files) == 12

    def test_it_says_honestly_what_cannot_be_verified(self):
        assert {name for name, s in SOURCES.items() if not s.verified} == {"drawbench", "ocr-train", "pickscore-train"}


def test_no_torch_is_needed():
    code = "import sys, flowopd_cli.prompts.public, flowopd_cli.cli.commands.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def public(tmp_path, monkeypatch):
    """Fetches from the real places into an empty cache; skips where there is no net."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))

    def get(name, tell):
        try:
            return fetch(name, tell=tell)
        except ArtifactError as error:
            if "cannot be fetched" in str(error) and "HTTP Error" not in str(error):
                pytest.skip(f"the public file of {name} cannot be reached")
            raise

    return get


@pytest.mark.hub
@pytest.mark.parametrize("name", list(SOURCES))
def test_the_public_files_are_where_the_table_says(public, name):
    said = []
    assert public(name, said.append).verified == SOURCES[name].verified
    assert not [line for line in said if "were expected" in line]


@pytest.mark.hub
def test_geneval_s_evaluation_prompts_are_all_held_out(public):
    lines = public("geneval", print).path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 553
    assert all(prompt_geneval.held_out(row) and prompt_geneval.describe(row) == row["prompt"] for row in rows)
