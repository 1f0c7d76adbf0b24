"""Suites on other prompts than their own: which they are, and how their figures are marked."""

import json
from dataclasses import replace

import pytest
import torch
from support.dpg_bench import some_rows, write_csv

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.prompts import public
from flowopd_cli.recipe import EvalRecipe, EvalSpec
from flowopd_cli.rewards.jpeg import JpegReward
from flowopd_cli.stages.evaluation.listed import ListedPicture, plan_listed
from flowopd_cli.stages.evaluation.requests import Requests, plan
from flowopd_cli.stages.evaluation.results import summarize_all
from flowopd_cli.suites.base import Suite, SuiteGroup, score
from flowopd_cli.suites.cvtg import FOLDERS
from flowopd_cli.system.files import sha256_file

BENCH = {"prompt": "a bench", "tag": "single_object", "include": [{"class": "bench", "count": 1}]}
PIG = {"prompt": "a pig", "atom_count": 1, "vqa_list": [["Is it a pig?", "Yes"]], "skills": ["object"]}
RECIPE = {"stage": "eval", "model": {"pretrained": "toy"}}
SETS = {
    "geneval": ["geneval"],
    "geneval2": ["geneval2"],
    "ocr": ["ocr"],
    "drawbench": ["drawbench"],
    "dpg-bench": ["dpg-bench"],
    "longtext-bench": ["longtext-en", "longtext-zh"],
    "cvtg-2k": ["cvtg-2k"],
    "t2i-compbench": ["t2i-compbench"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Small prompt files of all public suites, under our names, and an empty cache."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "prompts"
    root.mkdir()
    (root / "geneval_evaluation_metadata.jsonl").write_text(json.dumps(BENCH))
    (root / "geneval2_data.jsonl").write_text(json.dumps(PIG))
    (root / "ocr_test.txt").write_text('a sign that says "OPEN"\n')
    (root / "drawbench_test.txt").write_text("a horse\n")
    write_csv(root / "dpg_bench.csv", some_rows(["one"]))
    for name in ("longtext_text_prompts.jsonl", "longtext_text_prompts_zh.jsonl"):
        (root / name).write_text(json.dumps({"prompt": "a card", "prompt_id": 0, "text": ["A"]}))
    for name in FOLDERS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps({"data_list": [{"index": 0, "prompt": f"{name} 'A'"}]}))
    for name in ("color_val", "complex_val", "complex_val_spatial", "complex_val_action"):
        (root / f"{name}.txt").write_text("a red hen near a fox\n")
    return root


def suites(name, folder):
    options = {"categories": "color,complex", "folder": folder} if name == "t2i-compbench" else {"prompts": folder}
    suite = registry.SUITES.load(name)(**{key: str(value) for key, value in options.items()})
    return suite.suites if isinstance(suite, SuiteGroup) else (suite,)


def pin(monkeypatch, name, folder):
    """Let the files in the folder be the public ones of a set."""
    source = public.SOURCES[name]
    files = (file for file in source.files if (folder / file.name).is_file())
    pinned = tuple(replace(file, pin=sha256_file(folder / file.name)) for file in files)
    monkeypatch.setattr(public, "SOURCES", {**public.SOURCES, name: replace(source, files=pinned)})


@pytest.mark.parametrize("name", SETS)
def test_a_suite_on_other_prompts_than_the_public_ones_is_among_the_others(folder, monkeypatch, name):
    found = suites(name, folder)
    assert list(plan(found, [], EvalSpec()).others) == [suite.name for suite in found]
    for public_set in SETS[name]:
        pin(monkeypatch, public_set, folder)
    assert plan(suites(name, folder), [], EvalSpec()).others == {}


def test_a_category_is_on_its_own_prompts_whatever_the_files_of_another_are(folder, monkeypatch):
    pin(monkeypatch, "t2i-compbench", folder)
    (folder / "complex_val_action.txt").write_text("a dog ran\n")
    assert list(plan(suites("t2i-compbench", folder), [], EvalSpec()).others) == [
        "t2i-compbench-complex[grounding-dino]"
    ]


def test_prompts_that_differ_in_metadata_alone_do_not_compare(folder):
    (one,) = plan(suites("geneval", folder), [], EvalSpec()).others.values()
    path = folder / "geneval_evaluation_metadata.jsonl"
    path.write_text(json.dumps(BENCH) + "\n")
    assert plan(suites("geneval", folder), [], EvalSpec()).others == {"geneval": one}
    path.write_text(json.dumps({**BENCH, "include": [{"class": "bench", "count": 2}]}))
    assert plan(suites("geneval", folder), [], EvalSpec()).others != {"geneval": one}


def test_listed_pictures_of_other_prompts_of_a_suite_are_marked(folder, monkeypatch):
    listed = [ListedPicture(f"{number}.png", "a bench") for number in range(4)]
    assert plan_listed(suites("geneval", folder), [], EvalSpec(), listed).others
    pin(monkeypatch, "geneval", folder)
    assert plan_listed(suites("geneval", folder), [], EvalSpec(), listed).others == {}


def test_figures_on_other_prompts_are_marked_and_so_are_their_groups():
    prompt = Prompt("0", "a b", "x")
    one, two = (
        Suite(name, f"{name}-1", lambda split: [prompt], JpegReward, published={"SD3.5-M": 0.5})
        for name in ("one", "two")
    )

    def combine(results):
        return {"suite": "both", "version": "both-1", "exact": True, "mean": 0.0, "published": {"SD3.5-M": 0.5}}

    def figures(**others):
        reward = JpegReward()
        rows = {s.name: score(s, reward, torch.zeros(1, 3, 8, 8).byte(), [prompt], [0]) for s in (one, two)}
        requests = Requests((one, two), (SuiteGroup("both", (one, two), combine),), others=others)
        return summarize_all(requests, rows, {"one": reward, "two": reward}, EvalRecipe.model_validate(RECIPE))

    own, other, another = figures(), figures(one="a" * 64), figures(one="a" * 64, two="b" * 64)
    assert [own[name]["version"] for name in ("one", "two", "both")] == ["one-1", "two-1", "both-1"]
    assert own["both"]["exact"]
    assert own["one"]["published"] == {"SD3.5-M": 0.5}
    assert (other["one"]["version"], other["two"]) == ("one-1+aaaaaaaa", own["two"])
    for name in ("one", "both"):
        assert (other[name]["exact"], other[name]["published"]) == (False, {})
        assert "on other prompts than the suite's own" in other[name]["note"]
    assert len({result["both"]["version"] for result in (own, other, another)}) == 3
