"""Hostile names, files and pictures: none is executed, none leaves its folder, no secret is written."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from flowopd_cli import recipe as recipes
from flowopd_cli.core.merging import LoraFactors, MergeOptions, merge
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, MergeError, RecipeError
from flowopd_cli.runs.manifest import Base, Environment, Manifest, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation import suites as _suites
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.requests import PictureRequest
from flowopd_cli.stages.publishing import card
from flowopd_cli.stages.publishing.folder import copy_evaluation
from flowopd_cli.suites.layouts import FLAT, Layout, Place
from flowopd_cli.system.pictures import read_picture
from flowopd_cli.system.text import columns

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
EVAL = {"stage": "eval", "model": {"pretrained": "toy"}}


def evaluation(path, suite, prompts):
    run = RunDir.create(path, "eval")
    run.start(recipes.build(EVAL))
    result = {"suite": suite, "version": "1", "mean": 0.5, "stderr": None, "n": 2}
    run.write_eval("a", json.dumps(result))
    run.write_eval("prompts", json.dumps(prompts))
    run.finish("done")
    return run


MARKUP = "`x`|<script>alert(1)</script>\n# head\n[a](javascript:b)"


def test_a_card_escapes_every_text():
    manifest = Manifest(
        run_id="r",
        stage="teacher",
        status="done",
        recipe_sha=MARKUP,
        code_version=MARKUP,
        created="2026-01-01T00:00:00+00:00",
        environment=Environment(python="3", platform="x", packages={}),
        parents=(Parent(role=MARKUP, ref=MARKUP),),
        base=Base(ref=f'{MARKUP}")\nimport os'),
    )
    text = card.build(card.Card(title="t", manifest=manifest, evaluations=[], repo="me/t"))
    head, body = text.split("---\n")[1:3]
    assert yaml.safe_load(head)["tags"][-1] == "teacher"
    assert "\n# head" not in body
    assert "import os" not in [line.strip() for line in body.splitlines()]
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    outside = [part for number, part in enumerate(body.replace(code, "").split("`")) if number % 2 == 0]
    assert not any("<script>" in part or "](javascript:" in part for part in outside)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4}


def test_a_table_moves_no_cursor():
    assert columns([["a\x1b[2J\u202e", "b"]]) == r"a\x1b[2J\u202e  b"


def test_an_option_cannot_lead_results_out_of_the_run():
    options = {"longtext-bench-en": {"reader": "../../../../tmp/x"}}
    spec = {"suites": ["longtext-bench-en"], "options": options}
    with pytest.raises(RecipeError, match="cannot be the name of a file"):
        _suites.plan_requests(recipes.build({**EVAL, "eval": spec}))


def test_a_layout_cannot_lead_pictures_out_of_the_run(tmp_path):
    folder = PictureFolder(tmp_path / "run")
    place = Place(Prompt("0", "x", "t"), 0, 0, 1)
    for layout in (
        Layout(lambda place: "../../x.png"),
        Layout(FLAT.picture, lambda prompt, position: {"../../x": "y"}),
    ):
        with pytest.raises(ArtifactError, match="is not the name of a file"):
            folder.prepare([PictureRequest(place.prompt, place, "suite", layout, ("suite",))])
    assert not list(tmp_path.glob("x*"))


def test_a_link_in_an_evaluation_is_not_published(tmp_path):
    run = evaluation(tmp_path / "e", "ocr", [])
    (tmp_path / "secret").write_text("S3CRET")
    (run.eval_dir / "b.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"b\.json: is a link"):
        copy_evaluation(run.eval_dir, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def png(width, height, rows=b""):
    """A PNG that says a size, whatever is in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (b"\xff\xd8\xff", "no PNG, JPEG or WebP"),
        (EPS, "no PNG, JPEG or WebP"),
        (b"BM" + bytes(60), "no PNG, JPEG or WebP"),
        (png(50_000, 50_000), "50000 x 50000 pixels|exceeds limit"),
        (png(9_000, 9_000), "9000 x 9000 pixels, at most"),
        (png(8, 8, b"\0"), "truncated|broken"),
        (png(8, 8)[:40], "."),
    ],
)
def test_hostile_pictures_are_one_line(tmp_path, recwarn, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.png: cannot be read as a picture") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match=words):
        read_picture(path)
    assert not recwarn.list
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_picture(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_three_kinds_are_read_whatever_their_names(tmp_path, kind):
    Image.fromarray(np.full((4, 6, 3), 128, np.uint8)).save(tmp_path / "a.png", format=kind)
    assert read_picture(tmp_path / "a.png").size == (6, 4)
    assert read_picture(tmp_path / "a.png").mode == "RGB"


@pytest.mark.parametrize("method", ["linear", "exact", "factor_average", "dare_ties", "dare_linear"])
@pytest.mark.parametrize("weight", [1e100, 1e300])
def test_a_merge_beyond_float32_is_refused(method, weight):
    factors = {"m": LoraFactors(torch.full((2, 3), 1e3), torch.full((3, 2), 1e3))}
    with pytest.raises(MergeError, match=r"^m: "):
        merge([factors, factors], [weight, weight], MergeOptions(method))


def test_no_token_of_the_environment_reaches_a_run(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "FLOWOPD_REWARD_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "S3CRET-in-the-environment")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:S3CRET@proxy:8080")
    run = evaluation(tmp_path / "e", "ocr", ["a"])
    run.log({"reward": 1.0})
    for path in run.path.rglob("*"):
        if path.is_file():
            assert b"S3CRET" not in path.read_bytes(), path
