"""Pickled checkpoints are read when their SHA-256 is pinned, and not otherwise."""

import os

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_scorers import save_clip

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards import weights
from flowopd_cli.rewards.geneval.mmdet_weights import load_network
from flowopd_cli.rewards.preference import clip
from flowopd_cli.rewards.preference.scoring import weights_file
from flowopd_cli.rewards.weights import download, hub_file, load_tensors, split_digest, weights_id
from flowopd_cli.system.files import sha256_file

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module", autouse=True)
def _trust_pickles():
    """No exemption here: this module tests the refusal."""


@pytest.fixture
def pickled(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}}, path)
    return path


def test_a_pickle_is_read_when_its_digest_is_pinned(pickled):
    digest = sha256_file(pickled)
    assert load_tensors(*weights_file(f"{pickled}#sha256={digest}", "w.pt")).keys() == {"a"}
    assert load_tensors(*weights_file(f"{pickled.parent}#sha256={digest}", "w.pt")).keys() == {"a"}
    assert weights_id(f"{pickled}#sha256={digest}") == weights_id(str(pickled))


def test_a_pickle_without_a_pinned_digest_is_not_opened(pickled, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *given, **more: pytest.fail("opened"))
    with pytest.raises(ArtifactError, match=f"write .*#sha256={sha256_file(pickled)}, or convert"):
        load_tensors(*weights_file(str(pickled), "w.pt"))
    with pytest.raises(ArtifactError, match=r"sha256 is .*, expected 00"):
        load_tensors(*weights_file(f"{pickled}#sha256={'0' * 64}", "w.pt"))
    with pytest.raises(ArtifactError, match="a pickled checkpoint without a pinned sha256"):
        load_network(str(pickled))


def test_safetensors_need_no_digest(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert load_tensors(*weights_file(str(tmp_path / "w.safetensors"), "x")).keys() == {"a"}


def hub(tmp_path, monkeypatch, content, blob):
    """A file in the Hub's cache: a link to a blob that is named by its digest."""
    (tmp_path / "blobs").mkdir(parents=True)
    (tmp_path / "blobs" / blob).write_bytes(content)
    link = tmp_path / "snapshots" / COMMIT / "pytorch_model.bin"
    link.parent.mkdir(parents=True)
    os.symlink(tmp_path / "blobs" / blob, link)

    def fetch(repo, filename, *, revision=None):
        if filename != link.name:
            raise OSError("404")
        return str(link)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return link


def test_the_hub_vouches_for_what_it_has_at_a_commit(pickled, tmp_path, monkeypatch):
    digest = sha256_file(pickled)
    hub(tmp_path / "hub", monkeypatch, pickled.read_bytes(), digest)
    assert load_tensors(*hub_file("me/it", "pytorch_model.bin", revision=COMMIT)).keys() == {"a"}
    for revision in (None, "main", COMMIT[:12]):
        with pytest.raises(ArtifactError, match="without a pinned sha256"):
            load_tensors(*hub_file("me/it", "pytorch_model.bin", revision=revision))


def test_a_damaged_file_in_the_hubs_cache_is_refused(pickled, tmp_path, monkeypatch):
    hub(tmp_path / "hub", monkeypatch, pickled.read_bytes()[:-1] + b"x", sha256_file(pickled))
    with pytest.raises(ArtifactError, match=r"sha256 is .*, expected"):
        load_tensors(*hub_file("me/it", "pytorch_model.bin", revision=COMMIT))


def test_models_of_transformers_are_safetensors(tmp_path, monkeypatch):
    from transformers import CLIPModel

    save_clip(tmp_path / "clip")
    assert clip.read(CLIPModel, str(tmp_path / "clip")) is not None
    model = CLIPModel.from_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *given, **more: pytest.fail("opened"))
    with pytest.raises(ArtifactError, match="no CLIPModel can be read there"):
        clip.read(CLIPModel, str(tmp_path / "clip"))


class Old:
    """A model of transformers whose repository has no safetensors."""

    base_model_prefix = "old"
    asked: list = []  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, source, **options):
        cls.asked.append(options)
        if options.get("use_safetensors"):
            raise OSError("no file named model.safetensors")
        return "read"


@pytest.mark.parametrize(
    ("revision", "sound", "expected"), [(COMMIT, True, "read"), (COMMIT, False, None), ("v1", True, None)]
)
def test_a_pickle_at_a_pinned_commit_is_checked_before_transformers_reads_it(
    pickled, tmp_path, monkeypatch, revision, sound, expected
):
    content = pickled.read_bytes() if sound else b"other"
    hub(tmp_path / "hub", monkeypatch, content, sha256_file(pickled))
    Old.asked.clear()
    if expected:
        assert clip.read(Old, "me/it", revision) == expected
        assert Old.asked[-1] == {"revision": revision, "use_safetensors": False, "weights_only": True}
        return
    with pytest.raises(ArtifactError):
        clip.read(Old, "me/it", revision)
    assert all(options["use_safetensors"] for options in Old.asked)


@pytest.mark.parametrize("url", ["http://host/w.pt", "ftp://host/w.pt", "file:///etc/passwd"])
def test_nothing_is_fetched_in_the_open_without_a_digest(url):
    with pytest.raises(ArtifactError, match="is not fetched without https://"):
        download(url, sha256=None)


@pytest.mark.parametrize("url", ["https://host/..", "https://host/", "https://host/x/..?a=b"])
def test_a_url_without_a_name_is_refused(url):
    with pytest.raises(ArtifactError, match="names no file"):
        download(url, sha256=None)


def test_what_is_kept_of_a_url_is_a_plain_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    (tmp_path / "source.pt").write_bytes(b"x")
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda url, timeout: Answer(tmp_path / "source.pt"))
    path = download("https://host/a/..%2fw $.pt?token=S3CRET", sha256=None)
    assert path == tmp_path / "weights" / ".._2fw__.pt"


class Answer:
    """What ``urlopen`` gives for a file."""

    def __init__(self, path):
        self._file, self.headers = path.open("rb"), {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def read(self, size):
        return self._file.read(size)


def test_a_digest_is_told_from_a_name():
    digest = "a" * 64
    assert split_digest(f"/a#b.pt#sha256={digest}") == ("/a#b.pt", digest)
    assert split_digest("/a.pt#sha256=abc") == ("/a.pt#sha256=abc", None)
