"""What the Hub may answer to a push, and the one line that each answer becomes."""

import errno
import importlib
import os

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from support.hub_server import DROP, STRANGER, TOKEN, serving

from flowopd_cli.errors import ArtifactError, StorageError
from flowopd_cli.recipe import PushSpec
from flowopd_cli.stages.publishing.hub import Hub
from flowopd_cli.system.progress import Silent

OURS = ("eval", "samples")
CARD = "---\nlicense: apache-2.0\n---\n# it\n"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in for the Hub that this process takes for it, and a login."""
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "hub"
    (path / "eval").mkdir(parents=True)
    (path / "README.md").write_text(CARD)
    (path / "eval" / "ocr.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


class Noted(Silent):
    """Keeps the remarks."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def hub(repo="me/it", progress=None, **spec):
    return Hub(PushSpec(repo=repo, **spec), progress or Silent())


def push(folder, repo="me/it", **spec):
    found = hub(repo, **spec)
    found.check()
    return found.upload(folder, OURS)


def test_one_commit_holds_all_and_comes_back(server, folder, tmp_path):
    made = push(folder, message="first")
    assert made.new
    assert server.repos["me/it"].messages == ["initial commit", "first"]
    back = hub().fetch(made, folder, tmp_path / "back")
    assert (back / "eval" / "ocr.json").read_text() == "{}"
    assert (back / "adapter_model.safetensors").read_bytes() == b"weights"
    assert not (back / ".gitattributes").exists()
    again = push(folder)
    assert (again.sha, again.new) == (made.sha, False)


def test_an_organization_of_the_login_is_its_own(server, folder):
    assert push(folder, "team/it").url.startswith(f"{server.url}/team/it/commit/")


@pytest.mark.parametrize(("asked", "first", "last"), [(None, False, False), (False, True, False), (True, True, True)])
def test_a_new_repository_is_what_was_asked_for_and_public_only_at_the_end(server, folder, asked, first, last):
    push(folder, private=asked)
    assert server.repos["me/it"].private is first
    assert server.count("PUT", "/settings") == 0
    hub(private=asked).publish()
    assert server.repos["me/it"].private is last
    assert server.count("PUT", "/settings") == int(first is not last)


def test_a_repository_stays_as_it_is_unless_somebody_says_so(server, folder):
    push(folder, private=True)
    push(folder)
    assert server.repos["me/it"].private
    told = Noted()
    hub(progress=told, private=False).publish()
    hub(progress=told, private=False).publish()
    assert told.notes == ["me/it was private, and no longer is"]
    assert not server.repos["me/it"].private


def test_a_lost_login_says_how_to_log_in(server, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ArtifactError, match="nobody is logged in: run `hf auth login`"):
        hub().check()
    assert server.asked == []


def test_offline_says_what_to_unset(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE is set, so nothing may be uploaded: unset it"):
        hub().check()


def test_without_a_network_it_says_so(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match=r"me/it: not uploaded \(the Hub cannot be reached: ConnectError"):
        hub().check()


def test_an_unknown_token_and_a_foreign_namespace(server, monkeypatch):
    with pytest.raises(ArtifactError, match="you are logged in as me, who writes to me, team"):
        hub("other/it").check()
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(ArtifactError, match="logged in as stranger, who writes to stranger"):
        hub("me/it").check()
    monkeypatch.setenv("HF_TOKEN", "hf_unknownUnknownUnknown")
    with pytest.raises(ArtifactError, match="does not accept this token: log in again") as caught:
        hub("me/it").check()
    assert "hf_unknown" not in str(caught.value)


@pytest.mark.parametrize(
    ("whose", "role", "repo", "words"),
    [
        (TOKEN, "read", "me/it", "this token may only read.*with write access"),
        (TOKEN, "read", "team/it", "this token may only read"),
        ("team", "read", "team/it", r"me may only read in team\): ask there for write access"),
        ("team", "read", "me/it", None),
        ("team", "contributor", "team/it", None),
        (TOKEN, "fineGrained", "team/it", None),
    ],
)
def test_a_login_that_may_only_read_is_refused_by_the_check(server, whose, role, repo, words):
    server.roles[whose] = role
    if words is None:
        hub(repo).check()
        return
    with pytest.raises(ArtifactError, match=f"^{repo}: not uploaded .*{words}"):
        hub(repo).check()


@pytest.mark.parametrize("auth", [None, {}, {"accessToken": None}])
def test_a_login_that_tells_no_role_passes_the_check(server, monkeypatch, auth):
    found = hub()
    monkeypatch.setattr(found._api, "whoami", lambda: {"name": "me", "orgs": None, "auth": auth})
    found.check()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            ("POST", "/api/repos/create", 403, "You don't have the rights"),
            "use a token with write access.*403: You don't",
        ),
        (("POST", "/api/repos/create", 429), "accepts no more requests for now"),
        (("POST", "/commit/", 500), "the Hub failed: push again later; it answered 500"),
        (("POST", "/commit/", 503, f"busy {TOKEN}"), "answered 503: busy"),
        (("POST", "/commit/", 409, "conflict"), "another client is changing the repository: push again"),
        (("POST", "/commit/", 412), "another client changed the repository meanwhile"),
        (("POST", "/commit/", DROP), "the Hub cannot be reached: RemoteProtocolError"),
        (("PUT", "/lfs/", 403), "it answered 403"),
        (("POST", "/branch/", 403), "may not write there"),
        (("GET", "/revision/", 404), "is gone: push again"),
    ],
    ids=str,
)
def test_each_refusal_is_one_line_and_leaves_no_half_a_push(server, folder, fault, words):
    push(folder, revision="b")
    before = dict(server.files("me/it", "b"))
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    server.repos["me/it"].branches.pop("c", None)
    server.fail(*fault, times=9)
    repo = "me/new" if "create" in fault[1] else "me/it"
    with pytest.raises(ArtifactError, match=words) as caught:
        push(folder, repo, revision="c" if "branch" in fault[1] else "b")
    line = str(caught.value)
    assert line.startswith(f"{repo}: not uploaded (")
    assert "\n" not in line
    assert TOKEN not in line
    assert server.files("me/it", "b") == before
    server.faults.clear()
    assert push(folder, revision="b").new, "and the way out works"


def test_a_card_that_the_hub_refuses_is_one_line(server, folder):
    (folder / "README.md").write_text("---\nlicense: 3\n---\n")
    with pytest.raises(ArtifactError, match=r"me/it: not uploaded \(Invalid metadata in README\.md"):
        push(folder)
    assert server.count("POST", "/commit/") == 0


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])
def test_other_files_than_the_uploaded_are_found(server, folder, tmp_path, name):
    server.spoil = lambda path, content: content[::-1] if path == name else content
    made = push(folder)
    with pytest.raises(ArtifactError, match=rf"{name} on the Hub is not the file that was uploaded \(1 of 3 differ\)"):
        hub().fetch(made, folder, tmp_path / "back")


def test_a_file_that_is_gone_is_found(server, folder, tmp_path):
    made = push(folder)
    del server.repos["me/it"].commits[made.sha]["eval/ocr.json"]
    with pytest.raises(ArtifactError, match=r"eval/ocr\.json on the Hub is not the file"):
        hub().fetch(made, folder, tmp_path / "back")


def test_what_cannot_be_read_back_says_that_it_is_uploaded(server, folder, tmp_path):
    made = push(folder)
    server.fail("GET", "/tree/", 403, times=99)
    with pytest.raises(ArtifactError, match=r"me/it: uploaded, but not read back \("):
        hub().fetch(made, folder, tmp_path / "back")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_not_told_as_the_network(server, folder, tmp_path, monkeypatch, number, wrapped):
    def full(*args, **kwargs):
        error = OSError(number, os.strerror(number), str(tmp_path / "back" / "x"))
        if wrapped:
            raise RuntimeError("a thread failed") from error
        raise error

    made, back = push(folder), hub()
    monkeypatch.setattr(back._api, "snapshot_download", full)
    with pytest.raises(StorageError, match=r"me/it: uploaded, but not read back \(.*back/x: .*; make room") as caught:
        back.fetch(made, folder, tmp_path / "back")
    assert caught.value.exit_code == 4


def test_a_connection_that_the_system_forbids_is_the_networks(server, folder, tmp_path, monkeypatch):
    client = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])

    def forbidden(*args, **kwargs):
        raise client.ConnectError("no way") from PermissionError(errno.EACCES, "Permission denied")

    made, back = push(folder), hub()
    monkeypatch.setattr(back._api, "snapshot_download", forbidden)
    with pytest.raises(ArtifactError, match="the Hub cannot be reached: ConnectError"):
        back.fetch(made, folder, tmp_path / "back")


def test_only_what_a_push_left_in_its_own_folders_goes(server, folder):
    push(folder)
    there = server.repos["me/it"]
    added = {"eval/old.json": b"{}", "samples/0.png": b"p", "notes/mine.md": b"m", "evaluation.md": b"e"}
    there.commit("main", server.files("me/it") | added, "by hand")
    push(folder)
    assert set(server.files("me/it")) == {
        *(
            ".gitattributes",
            "README.md",
            "eval/ocr.json",
            "adapter_model.safetensors",
            "notes/mine.md",
            "evaluation.md",
        ),
    }
