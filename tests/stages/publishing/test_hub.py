"""A push against a stand-in for the Hub: commits, visibility, and one line for each error."""

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
from flowopd_cli.stages.publishing.hub import Commit, Hub
from flowopd_cli.system.progress import Silent

FULL = {
    "config.json": b"{}",
    "diffusion_pytorch_model.safetensors": b"w",
    "diffusion_pytorch_model-00001-of-00002.safetensors": b"w",
    "diffusion_pytorch_model.safetensors.index.json": b"{}",
}
LORA = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w", "pytorch_lora_weights.safetensors": b"w"}
THEIRS = {"notes.md": b"mine", "more/config.json": b"{}", "lora.safetensors": b"w"}
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


def hub(repo="me/it", **spec):
    return Hub(PushSpec(repo=repo, **spec), Silent())


def push(folder, repo="me/it", **spec):
    hub(repo, **spec).check()
    return hub(repo, **spec).upload(folder)


def test_one_commit_has_all_files_and_they_are_fetched_again(server, folder, tmp_path):
    commit = push(folder, message="first")
    assert commit.new
    assert server.repos["me/it"].messages == ["initial commit", "first"]
    fetched = hub().fetch(commit, folder, tmp_path / "back")
    assert (fetched / "eval" / "ocr.json").read_text() == "{}"
    assert (fetched / "adapter_model.safetensors").read_bytes() == b"weights"
    assert not (fetched / ".gitattributes").exists()
    again = push(folder)
    assert (again.sha, again.new) == (commit.sha, False)
    assert push(folder, "team/it").url.startswith(f"{server.url}/team/it/commit/")


@pytest.mark.parametrize(("before", "after"), [(FULL, LORA), (LORA, FULL)])
def test_weights_of_the_other_kind_are_deleted_in_the_same_commit(server, tmp_path, before, after):
    kept = {".gitattributes": b"", **THEIRS}
    card = {"README.md": CARD.encode(), "recipe.yaml": b""}
    first, second = tmp_path / "first", tmp_path / "second"
    for path, files in ((first, {**before, **card}), (second, {**after, **card})):
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    assert hub().stale(first) is None  # there is no repository
    assert push(first).deleted == ()
    server.repos["me/it"].commit("main", server.files("me/it") | kept | {"eval/old.json": b"{}"}, "by hand")
    for revision in (None, "next"):  # a new branch begins as main
        assert hub(revision=revision).stale(second) == sorted([*before, "eval/old.json"])
    commits = len(server.repos["me/it"].messages)
    commit = push(second)
    assert sorted(commit.deleted) == sorted([*before, "eval/old.json"])
    assert server.files("me/it").keys() == {*after, *card, *kept}
    assert len(server.repos["me/it"].messages) == commits + 1
    assert push(second).deleted == ()


def test_a_configuration_without_full_weights_is_not_deleted(server, folder):
    push(folder)
    server.repos["me/it"].commit("main", server.files("me/it") | {"config.json": b"{}"}, "by hand")
    assert hub().stale(folder) == []
    assert push(folder).deleted == ()
    assert "config.json" in server.files("me/it")


def test_a_repository_that_cannot_be_looked_at_is_one_line(server, folder):
    push(folder, private=True)
    server.fail("GET", "/tree/", 403, "no", times=9)
    with pytest.raises(ArtifactError, match=r"me/it: not looked at for files that an upload would delete \(.*no"):
        hub().stale(folder)


@pytest.mark.parametrize(("private", "first", "last"), [(None, False, False), (False, True, False), (True, True, True)])
def test_a_new_repository_is_public_only_at_the_end(server, folder, private, first, last):
    push(folder, private=private)
    assert server.repos["me/it"].private is first
    assert server.count("PUT", "/settings") == 0
    hub(private=private).publish()
    assert server.repos["me/it"].private is last
    assert server.count("PUT", "/settings") == int(first is not last)


def test_a_repository_stays_private_unless_the_recipe_changes_it(server, folder):
    push(folder, private=True)
    push(folder)
    hub().publish()
    assert server.repos["me/it"].private


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set, so nothing may be uploaded: unset it"),
        ("ENDPOINT", "http://127.0.0.1:9", r"me/it: not uploaded \(the Hub cannot be reached: ConnectError"),
    ],
)
def test_without_a_network_the_check_fails(server, monkeypatch, setting, value, message):
    monkeypatch.setattr(constants, setting, value)
    huggingface_hub.close_session()
    with pytest.raises(ArtifactError, match=message):
        hub().check()


@pytest.mark.parametrize(
    ("token", "roles", "repo", "message"),
    [
        ("", {}, "me/it", "nobody is logged in: run `hf auth login`"),
        (TOKEN, {}, "other/it", "you are logged in as me, who writes to me, team"),
        (STRANGER, {}, "me/it", "logged in as stranger, who writes to stranger"),
        ("hf_unknownUnknownUnknown", {}, "me/it", "does not accept this token: log in again"),
        (TOKEN, {TOKEN: "read"}, "me/it", "this token may only read.*with write access"),
        (TOKEN, {TOKEN: "read"}, "team/it", "this token may only read"),
        (TOKEN, {"team": "read"}, "team/it", r"me may only read in team\): ask there for write access"),
    ],
)
def test_a_login_that_may_not_write_is_refused_by_the_check(server, monkeypatch, token, roles, repo, message):
    monkeypatch.setenv("HF_TOKEN", token)
    server.roles |= roles
    with pytest.raises(ArtifactError, match=f"^{repo}: not uploaded .*{message}") as refused:
        hub(repo).check()
    assert "hf_unknown" not in str(refused.value)
    assert token or server.requests == []


@pytest.mark.parametrize(
    ("roles", "repo"),
    [({"team": "read"}, "me/it"), ({"team": "contributor"}, "team/it"), ({TOKEN: "fineGrained"}, "team/it")],
)
def test_a_login_that_may_write_passes_the_check(server, roles, repo):
    server.roles |= roles
    hub(repo).check()


@pytest.mark.parametrize("auth", [None, {}, {"accessToken": None}])
def test_a_login_without_a_role_passes_the_check(server, monkeypatch, auth):
    repository = hub()
    monkeypatch.setattr(repository._api, "whoami", lambda: {"name": "me", "orgs": None, "auth": auth})
    repository.check()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("POST", "/api/repos/create", 403, "You don't have the rights"), "with write access.*403: You don't"),
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
def test_a_refused_push_is_one_line_and_changes_nothing(server, folder, fault, message):
    push(folder, revision="b")
    before = dict(server.files("me/it", "b"))
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    server.fail(*fault, times=9)
    repo = "me/new" if "create" in fault[1] else "me/it"
    with pytest.raises(ArtifactError, match=message) as refused:
        push(folder, repo, revision="c" if "branch" in fault[1] else "b")
    line = str(refused.value)
    assert line.startswith(f"{repo}: not uploaded (")
    assert "\n" not in line
    assert TOKEN not in line
    assert server.files("me/it", "b") == before
    server.faults.clear()
    assert push(folder, revision="b").new, "the way out works"


def test_a_card_that_the_hub_refuses_is_one_line(server, folder):
    (folder / "README.md").write_text("---\nlicense: 3\n---\n")
    with pytest.raises(ArtifactError, match=r"me/it: not uploaded \(Invalid metadata in README\.md"):
        push(folder)
    assert server.count("POST", "/commit/") == 0


def test_changed_and_missing_files_on_the_hub_are_refused(server, folder, tmp_path):
    commit = push(folder)
    files = server.repos["me/it"].commits[commit.sha]
    files["README.md"] = b"changed"
    del files["eval/ocr.json"]
    with pytest.raises(ArtifactError, match=r"README\.md on the Hub is not the file .* \(2 of 3 differ\)"):
        hub().fetch(commit, folder, tmp_path / "back")


def test_an_error_of_the_download_says_that_the_upload_is_done(server, folder, tmp_path):
    commit = push(folder)
    server.fail("GET", "/tree/", 403, times=99)
    with pytest.raises(ArtifactError, match=r"me/it: uploaded, but not read back \("):
        hub().fetch(commit, folder, tmp_path / "back")


def caused_by(error, cause):
    """A function that raises ``error`` from ``cause``."""

    def fail(*args, **kwargs):
        raise error from cause

    return fail


def fetch(monkeypatch, folder, fail):
    repository = hub()
    monkeypatch.setattr(repository._api, "snapshot_download", fail)
    repository.fetch(Commit("0", "", True), folder, folder / "back")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_storage(tmp_path, monkeypatch, number, wrapped):
    full = OSError(number, os.strerror(number), "back/x")
    fail = caused_by(RuntimeError("a thread failed"), full) if wrapped else caused_by(full, None)
    with pytest.raises(StorageError, match=r"me/it: uploaded, but not read back \(.*back/x: .*; make room") as refused:
        fetch(monkeypatch, tmp_path, fail)
    assert refused.value.exit_code == 4


def test_a_forbidden_connection_is_an_error_of_the_network(tmp_path, monkeypatch):
    client = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
    fail = caused_by(client.ConnectError("no way"), PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(ArtifactError, match="the Hub cannot be reached: ConnectError"):
        fetch(monkeypatch, tmp_path, fail)
