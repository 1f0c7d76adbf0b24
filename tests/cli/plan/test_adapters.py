"""Adapters checked against a base by their files alone."""

import re
import subprocess
import sys

import pytest
import torch
import yaml
from support.tiny_adapters import MODULE, TOY_SHA, WIDTH, pair, write_adapter

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.adapters import check_adapters, check_base, check_targets
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.files.families import ATTENTION_TARGETS, family_of, known_shape, named_shapes
from flowopd_cli.models.files.pipelines import linear_shapes
from flowopd_cli.models.files.targets import target_layers
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.registry import MODELS
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.toy import folder

TOY = ModelSpec(pretrained="toy", resolution=None)


def refuse(refs, model=TOY, **options):
    with pytest.raises(ArtifactError) as caught:
        check_adapters(model, refs, Adapters(), **options)
    return str(caught.value)


def teacher(targets, pretrained="toy", **adapter):
    tree = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
    model = {"pretrained": pretrained, "family": "flux" if "FLUX" in pretrained else "sd3", "resolution": 512}
    return recipes.build({**tree, "model": model, "adapter": {"targets": targets, **adapter}})


DEV = "black-forest-labs/FLUX.1-dev"


@pytest.mark.parametrize(
    ("targets", "base", "words"),
    [
        (["attn.to_q", "norm_q"], "toy", "adapter.targets: 'norm_q' matches no linear layer of this base"),
        (["attn.to_q", "proj_mlp"], "toy", "'proj_mlp' matches no linear layer of this base, did you mean"),
        (
            "attn.to_k, attn.to_qq",
            "toy",
            "'attn.to_qq' matches no linear layer of this base, did you mean 'attn.to_q'?",
        ),
        ("all_linear", "toy", "did you mean 'all-linear'?"),
        (["norm_q"], DEV, "adapter.targets: 'norm_q' matches no linear layer of this base"),
    ],
)
def test_targets_without_a_linear_layer_are_refused_before_a_base_is_loaded(targets, base, words):
    with pytest.raises(RecipeError, match=re.escape(words)):
        check_targets(teacher(targets, base))


@pytest.mark.parametrize("base", ["toy", "stabilityai/stable-diffusion-3.5-medium", DEV])
def test_words_and_default_targets_match_layers_of_every_base(base):
    for targets in ("attention", "all-linear", ATTENTION_TARGETS):
        check_targets(teacher(targets, base))
    linear = measured_layers(base)
    assert set(target_layers(ATTENTION_TARGETS, linear)) <= set(target_layers(["attention"], linear))


@pytest.mark.parametrize("base", [name for name in named_shapes() if name.endswith("small")])
def test_a_recipe_without_targets_has_those_of_its_family(base):
    from flowopd_cli.models.loading import LoadOptions
    from flowopd_cli.models.memory import measure

    tree = {"stage": "teacher", "prompts": [{"source": "ocr"}], "rewards": [{"name": "ocr"}]}
    recipe = recipes.build({**tree, "model": {"pretrained": base, "family": family_of(base)}})
    assert recipe.adapter.targets
    assert recipes.build(yaml.safe_load(recipes.dump(recipe))) == recipe
    options = LoadOptions(dtype="float32", targets=recipe.adapter.targets, resolution=128)
    footprint = measure(recipe.model.family, base, options, 4)
    assert footprint is not None
    assert footprint.adapter > 0


def measured_layers(base):
    """The linear layers of a base, built without weights."""
    from flowopd_cli.models.random_weights import empty_transformer, skeleton

    if base == "toy":
        return list(linear_shapes(folder()))
    family = MODELS.load("flux" if base == DEV else "sd3")
    with skeleton(family, known_shape(base)) as path:
        transformer = empty_transformer(family, path, torch.device("meta"), torch.bfloat16)
    return [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


def test_targets_of_a_policy_that_starts_from_an_adapter_are_those_of_the_adapter():
    check_targets(teacher(["attn.none"], init="hub:owner/name"))


def test_an_intact_adapter_of_the_base_passes(tmp_path):
    ref = str(write_adapter(tmp_path / "a", r=4, base_sha256=TOY_SHA))
    check_adapters(TOY, {"adapter": ref, "anchor": "base", "routing.x": "hub:me/it@v1"}, Adapters())
    other = str(write_adapter(tmp_path / "b", pair(), base_sha256="c" * 64))
    assert "were trained on different bases" in refuse({"a": ref, "b": other}, ModelSpec(pretrained="owner/elsewhere"))


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
    assert words in refuse({"adapter": ref})
    check_adapters(ModelSpec(pretrained="owner/elsewhere"), {"adapter": ref}, Adapters())


def test_an_adapter_on_the_hub_is_checked_before_a_model_is_loaded(tmp_path, monkeypatch):
    path = write_adapter(tmp_path / "snapshot", pair("no.such.module"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(path))
    refs = {"adapter": "hub:me/it"}
    check_adapters(TOY, refs, Adapters())
    assert "hub:me/it: was made for another base: this one has no module no.such.module" in refuse(refs, fetch=True)
    (path / "adapter_model.safetensors").write_bytes(b"PK")
    message = refuse(refs, fetch=True)
    assert message.startswith("adapter: ")
    assert "damaged or not safetensors" in message


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors in it"),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"PK\x03\x04"), "damaged or not safetensors"),
        (lambda path: (path / "adapter_config.json").write_text('{"r": "x"}'), "key r: want a whole number"),
        (lambda path: (path / "adapter_config.json").write_text('{"r": 8}'), "says rank 8"),
        (lambda path: (path / "adapter_config.json").unlink(), "but no adapter_config.json beside it"),
    ],
)
def test_a_damaged_adapter_is_named_with_its_field(tmp_path, damage, words):
    path = write_adapter(tmp_path / "a")
    damage(path)
    message = refuse({"routing.ocr": str(path)})
    assert message.startswith("routing.ocr: ")
    assert words in message


@pytest.mark.parametrize(
    "text", ["hub:a/b@", "hub:a/b@x y", "hub:a/..", "hub:https://u:p@h/a", "hub:a b/c", "x" * 5000, "a\0b", "a\x1bb"]
)
def test_references_that_name_nothing(text):
    message = refuse({"init": text})
    assert len(message) < 300
    assert "u:p@" not in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"pretrained": "no/such/folder"}, "no such folder"),
        ({"pretrained": "owner/na me"}, "no repository of the Hub"),
        ({"pretrained": "https://host/x"}, "no such folder"),
        (
            {"pretrained": "/moved/base"},
            "base /moved/base: no such folder; .* by --base, on --resume by --set model.pretr",
        ),
        ({"pretrained": "x" * 5000 + "/y"}, "no repository of the Hub"),
        ({"pretrained": "owner/x", "revision": "a b"}, "not a branch, tag or commit"),
        ({"pretrained": "toy", "family": "flux"}, "use --set model.family=sd3"),
    ],
)
def test_invalid_bases_are_refused(model, words):
    with pytest.raises(ArtifactError, match=words):
        check_base(ModelSpec(**model))


@pytest.mark.parametrize("name", ["toy", "stabilityai/stable-diffusion-3.5-medium", "a/b_c.d-e"])
def test_valid_bases_pass(name):
    check_base(ModelSpec(pretrained=name, revision="refs/pr/3"))


def test_a_wrong_adapter_is_refused_by_the_command_before_torch_is_imported(tmp_path):
    ref = write_adapter(tmp_path / "a", pair("no.such.module"))
    recipe = recipes.dump(recipes.build({"stage": "eval", "model": {"pretrained": "toy", "resolution": None}}))
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    code = (
        "import sys\nfrom flowopd_cli.cli import app\nsys.argv = ['flowopd', *sys.argv[1:]]\ncode = app.run()\n"
        "print('torch' in sys.modules)\nsys.exit(code)"
    )
    argv = ["eval", "--recipe", tmp_path / "r.yaml", "--adapter", ref, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert done.stderr.count("\n") == 1
    assert "was made for another base: this one has no module no.such.module" in done.stderr
    assert not (tmp_path / "out").exists()
