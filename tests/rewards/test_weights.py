"""Weights of rewards: pickles only with a pinned SHA-256, downloads complete and cached."""

import hashlib
import os

import httpx2 as httpx
import pytest
import torch
from support.scripted import cut_short
from support.tiny_scorers import save_clip

from flowopd_cli.errors import ArtifactError, StorageError
from flowopd_cli.rewards.geneval.mmdet_weights import load_network
from flowopd_cli.rewards.preference import clip
from flowopd_cli.rewards.weights import (
    download,
    load_tensors,
    split_digest,
    split_revision,
    weights_file,
    weights_id,
)
from flowopd_cli.system.files import sha256_file

COMMIT = "0123456789" * 4
CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _trust_pickles():
    """No exemption here: this module tests the refusal."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def pickled(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}}, path)
    return path


def test_a_pickle_is_read_when_its_digest_is_pinned(pickled):
    digest = sha256_file(pickled)
    for source in (pickled, pickled.parent):
        assert load_tensors(*weights_file(f"{source}#sha256={digest}", "w.pt")).keys() == {"a"}
    assert weights_id(f"{pickled}#sha256={digest}") == weights_id(str(pickled)) == f"sha256:{digest}"


def test_a_pickle_without_a_pinned_digest_is_not_opened(pickled, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(ArtifactError, match=f"write .*#sha256={sha256_file(pickled)}, or convert"):
        load_tensors(*weights_file(str(pickled), "w.pt"))
    with pytest.raises(ArtifactError, match=r"sha256 is .*, expected 00"):
        load_tensors(*weights_file(f"{pickled}#sha256={'0' * 64}", "w.pt"))
    with pytest.raises(ArtifactError, match="a pickled checkpoint without a pinned sha256"):
        load_network(str(pickled))


def test_code_in_a_pinned_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match="cannot be read as weights"):
        load_tensors(tmp_path / "w.pt", sha256_file(tmp_path / "w.pt"))
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch, pickled):
    """Puts a file into the Hub's cache: a link to a blob that is named by its digest."""

    def put(content):
        blob = tmp_path / "hub" / "blobs" / sha256_file(pickled)
        link = tmp_path / "hub" / "snapshots" / COMMIT / "pytorch_model.bin"
        for path in (blob, link):
            path.parent.mkdir(parents=True)
        blob.write_bytes(content)
        os.symlink(blob, link)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, filename, *, revision=None: str(link))

    return put


def test_the_hub_pins_the_digest_of_a_file_at_a_commit(pickled, hub):
    hub(pickled.read_bytes())
    assert load_tensors(*weights_file(f"me/it@{COMMIT}", "pytorch_model.bin")).keys() == {"a"}
    for source in ("me/it", "me/it@main", f"me/it@{COMMIT[:12]}"):
        with pytest.raises(ArtifactError, match="without a pinned sha256"):
            load_tensors(*weights_file(source, "pytorch_model.bin"))


def test_a_damaged_file_in_the_hubs_cache_is_refused(pickled, hub):
    hub(pickled.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"sha256 is .*, expected"):
        load_tensors(*weights_file(f"me/it@{COMMIT}", "pytorch_model.bin"))


def test_a_local_model_of_transformers_must_be_safetensors(tmp_path, monkeypatch):
    from transformers import CLIPModel

    model = save_clip(tmp_path)
    assert clip.read(CLIPModel, str(tmp_path)) is not None
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("opened"))
    with pytest.raises(ArtifactError, match="cannot read a CLIPModel there"):
        clip.read(CLIPModel, str(tmp_path))


@pytest.mark.parametrize(("revision", "sound"), [(COMMIT, True), (COMMIT, False), ("v1", True)])
def test_a_pickle_at_a_pinned_commit_is_checked_before_transformers_reads_it(pickled, hub, revision, sound):
    attempts = []

    class Model:
        """A model of transformers whose repository has no safetensors."""

        base_model_prefix = "model"

        @classmethod
        def from_pretrained(cls, source, **options):
            attempts.append(options)
            if options.get("use_safetensors"):
                raise OSError("no file named model.safetensors")
            return "read"

    hub(pickled.read_bytes() if sound else b"other")
    if revision == COMMIT and sound:
        assert clip.read(Model, f"me/it@{revision}") == "read"
        assert attempts[-1] == {"revision": revision, "use_safetensors": False, "weights_only": True}
        return
    with pytest.raises(ArtifactError):
        clip.read(Model, f"me/it@{revision}")
    assert all(options["use_safetensors"] for options in attempts)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host/w.pt", "is not fetched without https://"),
        ("file:///etc/passwd", "is not fetched without https://"),
        ("https://host/..", "names no file"),
        ("https://host/x/..?a=b", "names no file"),
    ],
)
def test_an_unusable_url_is_refused(url, words):
    with pytest.raises(ArtifactError, match=words):
        download(url, sha256=None)


def test_the_cached_file_of_a_url_has_a_plain_name(cache, monkeypatch):
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=b"x")))
    monkeypatch.setattr(httpx, "stream", client.stream)
    path = download("https://host/a/..%2fw $.pt?token=S3CRET", sha256=None)
    assert path == cache / ".._2fw__.pt"


@pytest.mark.parametrize(("reply", "digest"), [(cut_short, DIGEST), ((404, b"no"), DIGEST), ((200, CONTENT), "0000")])
def test_an_incomplete_or_different_download_is_discarded(serve, cache, reply, digest):
    with pytest.raises(ArtifactError, match=r"cannot be fetched|expected 0000"):
        download(f"{serve(reply).url}/file.bin", sha256=digest)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_not_a_failed_download(serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"/w.bin: cannot be written \(Not a directory; "):
        download(f"{serve((200, CONTENT)).url}/w.bin", sha256=DIGEST)


def test_a_file_is_fetched_again_only_when_it_is_damaged(serve, cache):
    server = serve((200, CONTENT))
    path = download(f"{server.url}/file.bin", sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert download(f"{server.url}/file.bin", sha256=DIGEST) == path
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1])
    assert download(f"{server.url}/file.bin", sha256=DIGEST).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_digests_and_revisions_are_split_from_sources(tmp_path):
    digest = "a" * 64
    assert split_digest(f"/a#b.pt#sha256={digest}") == ("/a#b.pt", digest)
    assert split_digest("/a.pt#sha256=abc") == ("/a.pt#sha256=abc", None)
    assert split_revision("owner/name@abc") == ("owner/name", "abc")
    assert split_revision("owner/name") == ("owner/name", None)
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)
