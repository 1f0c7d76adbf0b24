"""The license of a base: known, told by its card on this machine or on the Hub, or unknown."""

from pathlib import Path

import pytest

from flowopd_cli.stages.publishing import licenses
from flowopd_cli.stages.publishing.licenses import inherited_license

LINK = "https://example.org/LICENSE"


def card(folder, head):
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A base\n")
    return folder


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("stabilityai/stable-diffusion-3.5-medium", "stabilityai-ai-community"),
        ("black-forest-labs/FLUX.1-dev", "flux-1-dev-non-commercial-license"),
    ],
)
def test_known_bases_have_their_own_whatever_a_copy_says(tmp_path, base, name):
    found = inherited_license(base, card(tmp_path, "license: mit"))
    assert (found["license"], found["license_name"]) == ("other", name)
    assert found["license_link"] == f"https://huggingface.co/{base}/blob/main/LICENSE.md"


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ("mine", "license: mit", {"license": "mit"}),
        ("mine", "language: en\nlicense: cc-by-nc-4.0\ntags: [a]", {"license": "cc-by-nc-4.0"}),
        (
            "mine",
            f"license: other\nlicense_name: ours\nlicense_link: {LINK}",
            {"license": "other", "license_name": "ours", "license_link": LINK},
        ),
        (
            "owner/base",
            "license: other\nlicense_name: ours\nlicense_link: LICENSE.md",
            {
                "license": "other",
                "license_name": "ours",
                "license_link": "https://huggingface.co/owner/base/blob/main/LICENSE.md",
            },
        ),
        ("mine", "license: other\nlicense_link: LICENSE.md", {"license": "other"}),
        ("mine", "license: other\nlicense_link: 'javascript:x'", {"license": "other"}),
        ("mine", "license: other\nlicense_link: 'https://x)<script>'", {"license": "other"}),
        ("mine", "license: other\nlicense_name: [a]", {"license": "other"}),
        ("mine", "license: [mit, apache-2.0]", {}),
        ("mine", "license: 'a b'", {}),
        ("mine", "language: en", {}),
        ("mine", "license: !!python/object:x {}", {}),
        ("mine", "license: &a mit\nx: *a", {"license": "mit"}),
        ("mine", "- license", {}),
        ("mine", "{", {}),
    ],
)
def test_the_card_in_the_folder_tells(tmp_path, base, head, expected):
    assert inherited_license(base, card(tmp_path, head)) == expected


def test_a_card_without_metadata_and_a_folder_without_a_card_tell_nothing(tmp_path):
    assert inherited_license("mine", tmp_path) == {}
    assert inherited_license("mine", None) == {}
    (tmp_path / "README.md").write_bytes(b"license: mit\n\xff\xfe")
    assert inherited_license("mine", tmp_path) == {}


def test_a_base_on_the_hub_is_asked_for_its_card_at_its_revision(tmp_path, monkeypatch):
    asked = []

    def download(repo, name, revision=None):
        asked.append((repo, name, revision))
        return str(card(tmp_path, "license: mit") / name)

    monkeypatch.setattr(licenses, "hf_hub_download", download)
    empty = Path(tmp_path / "empty")
    empty.mkdir()
    assert inherited_license("owner/base", empty, "v1") == {"license": "mit"}
    assert asked == [("owner/base", "README.md", "v1")]


def test_a_hub_that_does_not_answer_leaves_it_unknown(monkeypatch):
    def download(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(licenses, "hf_hub_download", download)
    assert inherited_license("owner/base", None) == {}
