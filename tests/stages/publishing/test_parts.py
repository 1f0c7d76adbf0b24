"""Parts of a push by themselves: what its check loads, and the pictures of its card."""

import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import verify
from flowopd_cli.stages.publishing.folder import pictures
from flowopd_cli.system.files import storing

TEACHER = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
QUICK = {"attention": "flash", "dtype": "bfloat16", "revision": "v1", "device": "cpu"}


@pytest.mark.parametrize("quick", [{"compile": "default"}, {"shard": True}])
def test_the_check_leaves_out_what_only_makes_a_training_quicker(tmp_path, monkeypatch, quick):
    """A backend of attention for half precision cannot draw in float32."""
    source, loaded = RunDir.create(tmp_path / "t", "teacher"), []

    def load(spec, adapters):
        loaded.append(spec)
        raise ArtifactError("seen")

    source.start(recipes.build({**TEACHER, "model": {"pretrained": "owner/base", **QUICK, **quick}}))
    monkeypatch.setattr(verify, "load_model", load)
    with pytest.raises(ArtifactError, match="seen"):
        verify.Check(source, tmp_path, recipes.build({"stage": "push", "run": str(source.path)}))
    (spec,) = loaded
    assert (spec.dtype, spec.attention, spec.compile, spec.shard) == ("float32", "auto", "none", False)
    assert (spec.pretrained, spec.revision, spec.device) == ("owner/base", "v1", "cpu")


@pytest.fixture
def scored(tmp_path):
    """An evaluation of two prompts with its row of pictures."""
    run = RunDir.create(tmp_path / "e", "eval")
    row, told = Image.new("RGB", (16, 8), "red"), PngImagePlugin.PngInfo()
    row.paste("blue", (8, 0, 16, 8))
    told.add_text("Source", "/home/me/secret")
    run.samples_dir.mkdir(exist_ok=True)
    row.save(run.image_file("eval"), pnginfo=told)
    run.write_eval("prompts", '["one", "two"]')
    return run


def test_the_row_is_cut_into_pictures_and_only_pixels_are_published(scored, tmp_path):
    name, gallery = pictures(scored, tmp_path / "hub")
    assert (name, gallery) == ("samples/eval.png", [("one", "samples/eval-0.png"), ("two", "samples/eval-1.png")])
    colors = [Image.open(tmp_path / "hub" / file).getpixel((0, 0)) for _, file in gallery]
    assert colors == [(255, 0, 0), (0, 0, 255)]
    assert Image.open(tmp_path / "hub" / name).size == (16, 8)
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "hub").rglob("*.png"))


def bomb():
    """A PNG of a few bytes that says it is 100,000 pixels wide and high."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: bomb(), lambda data: b"no"])
def test_a_damaged_row_is_one_line_that_names_it(scored, tmp_path, damage):
    path = scored.image_file("eval")
    path.write_bytes(damage(path.read_bytes()))
    with (
        pytest.raises(ArtifactError, match=r"samples/eval\.png: cannot be read as a picture \(.*; remove it") as caught,
        storing(tmp_path / "hub"),
    ):
        pictures(scored, tmp_path / "hub")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hub").exists(), "nothing of it is left to be published"
