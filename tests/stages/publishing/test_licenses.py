"""The license of a base: known, in its card on this machine or on the Hub, or unknown."""

import pytest

from flowopd_cli.stages.publishing import licenses
from flowopd_cli.stages.publishing.licenses import inherited_license

LINK = "https://example.org/LICENSE"
OTHER = "license: other\nlicense_name: ours\nlicense_link: "


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
def test_known_bases_ignore_their_card(tmp_path, base, name):
    terms = inherited_license(base, card(tmp_path, "license: mit"))
    link = f"https://huggingface.co/{base}/blob/main/LICENSE.md"
    assert terms == {"license": "other", "license_name": name, "license_link": link}


@pytest.mark.parametrize(
    ("base", "head", "expected"),
    [
        ("mine", "license: mit", ("mit",)),
        ("mine", "language: en\nlicense: cc-by-nc-4.0\ntags: [a]", ("cc-by-nc-4.0",)),
        ("mine", OTHER + LINK, ("other", "ours", LINK)),
        (
            "owner/base",
            f"{OTHER}LICENSE.md",
            ("other", "ours", "https://huggingface.co/owner/base/blob/main/LICENSE.md"),
        ),
        ("mine", f"{OTHER}LICENSE.md", ("other", "ours")),
        ("mine", f"{OTHER}'javascript:x'", ("other", "ours")),
        ("mine", f"{OTHER}'https://x)<script>'", ("other", "ours")),
        ("mine", "license: other\nlicense_name: [a]", ("other",)),
        ("mine", "license: [mit, apache-2.0]", ()),
        ("mine", "license: 'a b'", ()),
        ("mine", "language: en", ()),
        ("mine", "license: !!python/object:x {}", ()),
        ("mine", "license: &a mit\nx: *a", ("mit",)),
        ("mine", "- license", ()),
        ("mine", "{", ()),
    ],
)
def test_the_license_in_the_card_of_the_folder(tmp_path, base, head, expected):
    terms = dict(zip(("license", "license_name", "license_link"), expected, strict=False))
    assert inherited_license(base, card(tmp_path, head)) == terms


def test_without_a_readable_card_the_license_is_unknown(tmp_path):
    assert inherited_license("mine", tmp_path) == {}
    assert inherited_license("mine", None) == {}
    (tmp_path / "README.md").write_bytes(b"license: mit\n\xff\xfe")
    assert inherited_license("mine", tmp_path) == {}


def test_the_card_on_the_hub_is_read_at_the_revision_of_the_base(tmp_path, monkeypatch):
    requests = []

    def download(repo, name, revision=None):
        requests.append((repo, name, revision))
        if revision is None:
            raise OSError("no network")
        return str(card(tmp_path, "license: mit") / name)

    monkeypatch.setattr(licenses, "hf_hub_download", download)
    assert inherited_license("owner/base", tmp_path / "empty", "v1") == {"license": "mit"}
    assert inherited_license("owner/base", None) == {}, "offline"
    assert requests == [("owner/base", "README.md", "v1"), ("owner/base", "README.md", None)]
