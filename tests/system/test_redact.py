"""Local paths and private addresses in published texts."""

import time

import pytest

from flowopd_cli.rewards.compbench.blip_weights import CHECKPOINT
from flowopd_cli.system.redact import public_name, public_reference, public_text

COPY = "/home/me/.cache/huggingface/hub/models--owner--a-name/snapshots/0123abc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("toy", "toy"),
        ("owner/name", "owner/name"),
        ("/home/me/bases/sd35", "sd35"),
        ("~/bases/sd35/", "sd35"),
        ("there/is", "is"),
        (COPY, "owner/a-name"),
        ("/", "/"),
        ("~", "~"),
        ("words/" * 200, "words/" * 200),
        ("a\0/b", "a\0/b"),
    ],
    ids=lambda text: text[:40].replace("\0", "0"),
)
def test_public_name_shortens_paths_only(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "is").mkdir(parents=True)
    assert public_name(text) == expected


def test_public_reference_keeps_hub_references():
    references = {"base": "base", "hub:o/n@v1": "hub:o/n@v1", "runs/t-ocr": "t-ocr", "/data/t-ocr/": "t-ocr"}
    assert {text: public_reference(text) for text in references} == references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a red/blue circle, 3/4", "a photo of a red/blue circle, 3/4"),
        ("blip-vqa-480/builtin-1", "blip-vqa-480/builtin-1"),
        ("openai/clip-vit-large-patch14@32bd64288", "openai/clip-vit-large-patch14@32bd64288"),
        ("remote:attr", "remote:attr"),
        ("grounding-dino//home/me/gdino/builtin", "grounding-dino/builtin"),
        ("3-in-1/owlv2/../weights/ow", "3-in-1/owlv2/ow"),
        ("owlv2=/data/my/owl", "owlv2=owl"),
        ("owlv2=~/owl", "owlv2=owl"),
        ("/home/me/my models/w.pth#sha256=0a", "w.pth#sha256=0a"),
        ("/home/me/w.pth: no such file, see docs/x", "w.pth: no such file, see docs/x"),
        ("cannot be read ('/home/me/my.png')", "cannot be read ('my.png')"),
        ("remote:http://gpu17.corp.internal:8000", "remote:address"),
        ("remote:http://a:1,https://b/x", "remote:address"),
        ("http://10.1.2.3:9000", "address"),
        ("http://[fd00::1]:80/v1", "v1"),
        ("http://[fd00::1", "address"),
        ("http://10.1.2.3:9000/v1,https://models.corp.internal/v2/", "v1,v2"),
        ("http://10.1.2.3:9000: refused", "address refused"),
        ("https://mirror.corp.internal/blip/model.pth", "model.pth"),
        ("s3://bucket/team/w.safetensors", "w.safetensors"),
        ("https://me:secret@huggingface.co/owner/name", "name"),
        (CHECKPOINT, CHECKPOINT),
        ("https://huggingface.co/owner/name/w.pth", "https://huggingface.co/owner/name/w.pth"),
        ("https://huggingface.co.evil.internal/owner/name", "name"),
    ],
)
def test_public_text_shortens_paths_and_private_addresses(text, expected):
    assert public_text(text) == expected


def test_long_texts_take_linear_time():
    texts = "a" * 200_000, "~a" * 50_000, "/a" * 100_000, "./" * 100_000
    started = time.perf_counter()
    for text in texts:
        public_text(f"x {text}: ")
    assert time.perf_counter() - started < 2
