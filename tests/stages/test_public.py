"""What a push makes of local paths."""

import pytest
import yaml

from flowopd_cli import recipe as recipes
from flowopd_cli.manifest import Base, Parent
from flowopd_cli.run import RunDir
from flowopd_cli.stages._public import public_manifest, public_name, public_recipe, public_reference

COPY = "/home/me/.cache/huggingface/hub/models--owner--a-name/snapshots/0123abc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("toy", "toy"),
        ("owner/name", "owner/name"),
        ("toy:geneval", "toy:geneval"),
        ("/home/me/bases/sd35", "sd35"),
        ("~/bases/sd35/", "sd35"),
        ("../bases/sd35", "sd35"),
        ("there/is", "is"),
        (COPY, "owner/a-name"),
    ],
)
def test_a_name_stays_and_a_path_becomes_one(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "is").mkdir(parents=True)
    assert public_name(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("base", "base"), ("hub:owner/name@v1", "hub:owner/name@v1"), ("runs/t-ocr", "t-ocr"), ("/data/t-ocr/", "t-ocr")],
)
def test_a_reference_stays_only_on_the_hub(text, expected):
    assert public_reference(text) == expected


def test_a_published_recipe_loads_and_names_no_folder():
    built = recipes.build(
        {
            "stage": "distill",
            "model": {"pretrained": COPY},
            "adapter": {"init": "runs/init"},
            "prompts": [{"source": "/home/me/prompts.jsonl"}, {"source": "toy:ocr"}],
            "routing": {"ocr": {"ref": "/data/runs/t-ocr"}, "geneval": {"ref": "hub:owner/t"}},
            "anchor": {"ref": "runs/t-quality"},
            "rewards": [{"name": "ocr", "options": {"weights": "/data/ocr", "languages": ["en"]}}],
        }
    )
    text = public_recipe(built)
    published = recipes.build(yaml.safe_load(text))
    assert published.model.pretrained == "owner/a-name"
    assert published.adapter.init == "init"
    assert [spec.source for spec in published.prompts] == ["prompts.jsonl", "toy:ocr"]
    assert {task: spec.ref for task, spec in published.routing.items()} == {"ocr": "t-ocr", "geneval": "hub:owner/t"}
    assert published.anchor.ref == "t-quality"
    assert published.rewards[0].options == {"weights": "ocr", "languages": ["en"]}
    assert published.train == built.train
    assert text.startswith("#")


def test_a_published_manifest_keeps_digests_and_loses_paths(tmp_path):
    run = RunDir.create(tmp_path / "r", "distill")
    run.start(recipes.build({"stage": "push", "run": "r"}))
    run.set_base(str(tmp_path / "sd35"), "b" * 64)
    run.set_parents([Parent(role="anchor", ref=str(tmp_path / "t"), sha256="a" * 64)])
    shown = public_manifest(run.manifest())
    assert shown.base == Base(ref="sd35", sha256="b" * 64)
    assert shown.parents == (Parent(role="anchor", ref="t", sha256="a" * 64),)
    assert str(tmp_path) not in shown.model_dump_json()
