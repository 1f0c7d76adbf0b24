"""The published parts of a recipe, a manifest, an evaluation and its pictures."""

import json

import pytest
import yaml
from PIL import Image, PngImagePlugin
from support.reported import evaluation, policy_run

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.reported import reported
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing.folder import (
    copy_evaluation,
    model_of,
    pictures,
    public_manifest,
    public_recipe,
    trained_on,
    usage,
)

COPY = "/home/me/.cache/huggingface/hub/models--owner--a-name/snapshots/0123abc"


def test_workers_of_rewards_are_not_published():
    rewards = [{"name": "remote:http://gpu17.corp.internal:8000"}, {"name": "vlm", "options": {"model": "m"}}]
    rewards[1]["options"]["url"] = "http://10.1.2.3:9000"
    built = recipes.build({"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": rewards})
    text = public_recipe(built)
    published = recipes.build(yaml.safe_load(text))
    assert [spec.name for spec in published.rewards] == ["remote:address", "vlm"]
    assert published.rewards[1].options == {"model": "m", "url": "address"}
    published_text = text + trained_on(built)
    assert "corp" not in published_text
    assert "10.1.2.3" not in published_text


def test_only_listed_fields_without_private_places_are_published(tmp_path):
    run = RunDir.create(tmp_path / "e", "eval")
    place = str(tmp_path / "w")
    weights = {"model": place, "worker": "http://10.1.2.3:9000/score"}
    result = {
        "suite": "s",
        "engine": f"dpt/{place}/x",
        "weights": weights,
        "note": f"read by {place}",
        "mean": 0.5,
        "host": "gpu17",
    }
    run.write_eval("s", json.dumps({**result, "protocol": {"model": place, "steps": 2}}))
    run.write_eval("prompts", '["/imagine a/b c"]')
    details = {"error": f"{place}: torn", "engine": place, "read": ["/A/B"]}
    row = {"text": "/imagine a/b c", "value": 0.5, "details": details}
    run.write_rows("s", [{**row, "host": "gpu17"}, {**row, "value": None}])
    (run.eval_dir / "notes.txt").write_text("gpu17")
    copy_evaluation(run.eval_dir, tmp_path / "hub")
    texts = {path.name: path.read_text() for path in (tmp_path / "hub").iterdir()}
    assert set(texts) == {"s.json", "s.jsonl", "prompts.json"}
    assert [
        name for name, text in texts.items() if any(secret in text for secret in (str(tmp_path), "10.1.2.3", "gpu17"))
    ] == []
    published = json.loads(texts["s.json"])
    assert (published["engine"], published["weights"]) == ("dpt/x", {"model": "w", "worker": "score"})
    assert (published["note"], published["protocol"]) == ("read by w", {"model": "w", "steps": 2})
    first, second = map(json.loads, texts["s.jsonl"].splitlines())
    assert first == {**row, "details": {"error": "w: torn", "engine": "w", "read": ["/A/B"]}}
    assert second == {**first, "value": None}
    assert json.loads(texts["prompts.json"]) == ["/imagine a/b c"]


@pytest.mark.parametrize("name", ["s.json", "s.jsonl"])
def test_a_deeply_nested_result_is_refused(tmp_path, name):
    run = RunDir.create(tmp_path / "e", "eval")
    run.eval_dir.mkdir(exist_ok=True)
    nested = "[" * 700 + "]" * 700
    (run.eval_dir / name).write_text(f'{{"note": {nested}, "details": {nested}}}')
    with pytest.raises(ArtifactError, match=f"{name}: damaged result of an evaluation"):
        copy_evaluation(run.eval_dir, tmp_path / "hub")


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
    anchor = Parent(role="anchor", ref=str(tmp_path / "t"), sha256="a" * 64)
    run.declare(Inputs(base=Base(ref=str(tmp_path / "sd35"), sha256="b" * 64), parents=(anchor,)))
    shown = public_manifest(run.manifest())
    assert shown.base == Base(ref="sd35", sha256="b" * 64)
    assert shown.parents == (Parent(role="anchor", ref="t", sha256="a" * 64),)
    assert str(tmp_path) not in shown.model_dump_json()


def test_a_push_reads_its_own_base_where_the_recorded_folder_is_gone(tmp_path):
    run, base = RunDir.create(tmp_path / "r", "teacher"), tmp_path / "base"
    model = {"pretrained": str(base), "resolution": 64}
    run.start(recipes.build({"stage": "merge", "adapters": ["a", "b"], "model": model}))
    push = recipes.build({"stage": "push", "run": str(run.path), "model": {"pretrained": str(tmp_path / "moved")}})
    base.mkdir()
    (tmp_path / "moved").mkdir()
    assert model_of(push, run).pretrained == str(base)
    base.rmdir()
    assert model_of(push, run) == run.recipe().model.model_copy(update={"pretrained": str(tmp_path / "moved")})
    (tmp_path / "moved").rmdir()
    assert model_of(push, run).pretrained == str(base)


@pytest.fixture
def scored(tmp_path):
    """An evaluation of two prompts with its sheet of pictures."""
    run = RunDir.create(tmp_path / "e", "eval")
    sheet, info = Image.new("RGB", (16, 8), "red"), PngImagePlugin.PngInfo()
    sheet.paste("blue", (8, 0, 16, 8))
    info.add_text("Source", "/home/me/secret")
    run.samples_dir.mkdir(exist_ok=True)
    sheet.save(run.image_file("eval"), pnginfo=info)
    run.write_eval("prompts", '["one", "two"]')
    return run


def test_the_sheet_is_cut_into_pictures_and_only_pixels_are_published(scored, tmp_path):
    name, gallery = pictures(scored, tmp_path / "hub")
    assert (name, gallery) == ("samples/eval.png", [("one", "samples/eval-0.png"), ("two", "samples/eval-1.png")])
    colors = [Image.open(tmp_path / "hub" / file).getpixel((0, 0)) for _, file in gallery]
    assert colors == [(255, 0, 0), (0, 0, 255)]
    assert Image.open(tmp_path / "hub" / name).size == (16, 8)
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "hub").rglob("*.png"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no"])
def test_a_damaged_sheet_is_one_line_that_names_it(scored, tmp_path, damage):
    path = scored.image_file("eval")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"samples/eval\.png: cannot be read as a picture \(.*; remove it"):
        pictures(scored, tmp_path / "hub")
    assert not (tmp_path / "hub").exists(), "nothing is left to be published"


@pytest.mark.parametrize(
    ("evaluations", "expected", "note"),
    [
        ([], (10, 4.5), ""),
        ([{"guidance": 3.0, "steps": 20}], (20, 3), ""),
        (
            [{"guidance": (1, 2), "split": "validation"}],
            (40, 2),
            "the guidances 1, 2, 2 is the best on validation prom",
        ),
        (
            [{"guidance": (1, 2), "split": "validation"}, {"guidance": (1, 2, 3), "steps": 20}],
            (20, 2),
            "2 is the best on",
        ),
        (
            [{"guidance": (1, 2), "steps": 20}],
            (20, 4.5),
            "on test prompts only, which choose none: 4.5 is that of the tr",
        ),
    ],
)
def test_the_guidance_of_the_card_is_never_chosen_on_test_prompts(tmp_path, evaluations, expected, note):
    source = policy_run(tmp_path / "r")
    for index, protocol in enumerate(evaluations):
        mean = (0.1, 0.5, 0.9) if isinstance(protocol["guidance"], tuple) else 0.5
        evaluation(tmp_path / f"e{index}", source, {"ocr": mean}, **protocol)
    sampling = source.recipe().sampling
    settings, found = usage(reported(source, [], guidance=sampling.guidance), sampling)
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == expected
    assert note in found
    assert bool(note) == bool(found)


def test_the_guidance_of_a_merge_without_validation_is_the_first(tmp_path):
    source = policy_run(tmp_path / "r")
    evaluation(tmp_path / "e", source, {"ocr": (0.1, 0.5)}, guidance=(2, 3))
    settings, note = usage(reported(source, []), None)
    assert settings["guidance_scale"] == 2
    assert note.endswith("2 is the first of them.")
    assert usage(reported(policy_run(tmp_path / "a" / "r"), []), None) == ({}, "")
