"""Adapters checked against a base by their files alone."""

import json
import subprocess
import sys

import pytest
from support.tiny_adapters import MODULE, TOY_SHA, WIDTH, pair, write_adapter

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.adapters import check_base, check_bases, check_refs
from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.runs.adapter_ref import Adapters

TOY = ModelSpec(pretrained="toy", resolution=None)


def test_a_sound_adapter_of_the_base_passes(tmp_path):
    ref = str(write_adapter(tmp_path / "a", r=4, base_sha256=TOY_SHA))
    check_refs({"adapter": ref, "anchor": "base", "routing.x": "hub:me/it@v1"}, Adapters())
    check_bases(TOY, {"adapter": ref, "anchor": "base", "routing.x": "hub:me/it@v1"}, Adapters())


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({}, {"base_sha256": "c" * 64}, "was trained on another base (cccccccccccc, toy is"),
        (pair("transformer_blocks.77.attn.to_q"), {}, "this one has no module transformer_blocks.77.attn.to_q"),
        (pair(inputs=WIDTH + 1), {}, f"{MODULE} is {(WIDTH, WIDTH)} here, the adapter expects {(WIDTH, WIDTH + 1)}"),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path, tensors, config, words):
    ref = str(write_adapter(tmp_path / "a", tensors or pair(), **config))
    check_refs({"adapter": ref}, Adapters())
    with pytest.raises(ArtifactError) as caught:
        check_bases(TOY, {"adapter": ref}, Adapters())
    assert words in str(caught.value)
    check_bases(ModelSpec(pretrained="owner/elsewhere"), {"adapter": ref}, Adapters())


def test_an_adapter_on_the_hub_is_looked_at_before_a_model_is_loaded(tmp_path, monkeypatch):
    path = write_adapter(tmp_path / "snapshot", pair("no.such.module"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **more: str(path))
    refs = {"adapter": "hub:me/it"}
    check_refs(refs, Adapters(), fetch=True)
    check_bases(TOY, refs, Adapters())
    with pytest.raises(ArtifactError, match=r"hub:me/it: is of another base: this one has no module no\.such"):
        check_bases(TOY, refs, Adapters(), fetch=True)
    (path / "adapter_model.safetensors").write_bytes(b"PK")
    check_refs(refs, Adapters())
    with pytest.raises(ArtifactError, match=r"^adapter: .*damaged or not safetensors"):
        check_refs(refs, Adapters(), fetch=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors in it"),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"PK\x03\x04"), "damaged or not safetensors"),
        (lambda path: (path / "adapter_config.json").write_text('{"r": "x"}'), "key r: want a whole number"),
        (lambda path: (path / "adapter_config.json").write_text('{"r": 8}'), "says rank 8"),
        (lambda path: (path / "adapter_config.json").unlink(), "neither a run nor an adapter folder"),
    ],
)
def test_a_damaged_adapter_is_named_with_its_place_in_the_recipe(tmp_path, spoil, words):
    path = write_adapter(tmp_path / "a")
    spoil(path)
    with pytest.raises(ArtifactError, match=r"^routing\.ocr: ") as caught:
        check_refs({"routing.ocr": str(path)}, Adapters())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"pretrained": "no/such/folder"}, "no such folder"),
        ({"pretrained": "./none"}, "no such folder"),
        ({"pretrained": "owner/na me"}, "no repository of the Hub"),
        ({"pretrained": "owner/.."}, "no repository of the Hub"),
        ({"pretrained": "owner/x--y"}, "no repository of the Hub"),
        ({"pretrained": "https://host/x"}, "no such folder"),
        ({"pretrained": "x" * 5000 + "/y"}, "no repository of the Hub"),
        ({"pretrained": "owner/x", "revision": "a b"}, "no branch, tag or commit"),
        ({"pretrained": "owner/x", "revision": "../main"}, "no branch, tag or commit"),
    ],
)
def test_what_cannot_be_a_base(model, words):
    with pytest.raises(ArtifactError, match=words):
        check_base(ModelSpec(**model))


@pytest.mark.parametrize("name", ["toy", "stabilityai/stable-diffusion-3.5-medium", "a/b_c.d-e"])
def test_what_can_be_a_base(name):
    check_base(ModelSpec(pretrained=name, revision="refs/pr/3"))


@pytest.mark.parametrize(
    "text",
    [
        "hub:a/b@",
        "hub:a/b@x y",
        "hub:a/..",
        "hub:https://u:p@h/a",
        "hub:a b/c",
        "x" * 5000,
        "a\0b",
        "a\x1bb",
        "hub:a/b@../x",
    ],
)
def test_references_that_name_nothing(text):
    with pytest.raises(ArtifactError) as caught:
        check_refs({"init": text}, Adapters())
    assert len(str(caught.value)) < 300
    assert "u:p@" not in str(caught.value)


def test_a_wrong_adapter_is_refused_by_the_command_before_torch_is_imported(tmp_path):
    ref = write_adapter(tmp_path / "a", pair("no.such.module"))
    recipe = recipes.dump(recipes.build({"stage": "eval", "model": {"pretrained": "toy", "resolution": None}}))
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    code = (
        "import sys\nfrom flowopd_cli.cli import app\nsys.argv = ['flowopd', *sys.argv[1:]]\ntry:\n    app.main()\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    argv = ["eval", "--recipe", tmp_path / "r.yaml", "--adapter", ref, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert done.stderr.count("\n") == 1
    assert "is of another base: this one has no module no.such.module" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_helper_writes_what_safetensors_reads(tmp_path):
    from safetensors.torch import load_file

    path = write_adapter(tmp_path / "a", metadata={"base_sha256": TOY_SHA}, r=4)
    assert {tuple(t.shape) for t in load_file(path / "adapter_model.safetensors").values()} == {(4, WIDTH), (WIDTH, 4)}
    assert json.loads((path / "adapter_config.json").read_text()) == {"r": 4}
