"""Every command that the documentation shows: parsed always, run small in the ordinary suite, as written under slow."""

import json
import os
import subprocess
import sys

import pages
import pytest
import typer
from support import toyruns

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli import execute, several
from flowopd_cli.cli.app import app
from flowopd_cli.cli.plan import resolve

TINY = toyruns.changes(*toyruns.SMALL, "train.iterations=1", "train.sample_every=0", "train.keep_best=null")
SMALL = {
    "teacher": TINY,
    "coldstart": [*TINY, *toyruns.changes("sft.samples=4", "sft.batch=4")],
    "distill": TINY,
    "merge": toyruns.changes("merge.rank=2"),
    "eval": toyruns.changes("eval.limit=1", "eval.images=1", "eval.steps=2"),
    "push": toyruns.changes("push.verify_steps=2"),
}
# Keys that a stage logs with some settings only; `reward/…` stands for keys whose names depend on the reward.
BY_SETTING = {"kl_base", "reward", "reward_std", "invalid", "flat_groups", "clip_fraction"}
BY_SETTING |= {"reward/NAME", "reward/NAME/SCORE", "refilled", "resampled_groups", "distance_base", "distance_slow"}
FAMILIES = {"kl": "kl/TASK", "kl_step": "kl_step/INDEX"}  # keys that are one for each of something
FREE = [block for block in pages.SHELL if not block.needs]
SHIMS = {
    name: f'#!/bin/sh\nexec "{sys.executable}" {more}"$@"\n'
    for name, more in {"flowopd": "-m flowopd_cli ", "python": "", "python3": ""}.items()
}


def leaf(words):
    """The command that words name, and the words that are left for it."""
    command, words = typer.main.get_command(app), list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize("command", pages.COMMANDS, ids=str)
def test_every_flag_exists_and_every_value_parses(command):
    found, words = leaf(command.words)
    if words != ["--version"]:
        found.make_context("flowopd", words)


def stages():
    return [command for command in pages.COMMANDS if command.words[0] in SMALL]


@pytest.mark.parametrize("command", stages(), ids=str)
def test_every_stage_resolves_to_a_recipe_of_names_that_exist(command, flowopd, monkeypatch, tmp_path):
    if any(word.endswith(".yaml") for word in command.words):
        pytest.skip("the page's own recipe, which the page's own run reads")
    resolved = []
    resumed = recipes.build({"stage": "merge", "adapters": ["a"]})
    monkeypatch.setattr(execute, "execute", lambda plan, common: resolved.append(plan.recipe))
    monkeypatch.setattr(
        several, "execute_each", lambda plans, common: resolved.extend(p.recipe for p in plans.values())
    )
    monkeypatch.setattr(resolve, "_resumed", lambda *rest: resumed)
    monkeypatch.setattr(resolve, "keep_tasks", lambda recipe, keep: (recipe, keep))
    monkeypatch.chdir(tmp_path)
    code, _, err = flowopd(*command.words)
    assert code == 0, err
    for spec in getattr(resolved[0], "rewards", ()):
        registry.REWARDS.target(spec.name)
    for name in getattr(getattr(resolved[0], "eval", None), "suites", ()):
        assert name in registry.SUITES.names() or name == "blue"  # the suite of add_a_suite.md


def small(words):
    """The same command line with the smallest settings, in one process."""
    words = [*words]
    if "--processes" in words:
        at = words.index("--processes")
        del words[at : at + 2]
    if "--resume" in words:
        return [*words, *(toyruns.changes("train.iterations=3") if "--set" in words else [])]
    return words if "--dry-run" in words and words[0] != "push" else [*words, *SMALL.get(words[0], [])]


@pytest.fixture(scope="module")
def done(forks, folder):
    """The results of all commands without special needs; a command of two pages runs once."""
    give(folder, pages.BLOCKS)
    found = {}
    for command in (command for block in FREE for command in pages.commands(block.text, block)):
        if command.words not in found:
            ended = found[command.words] = forks.run(*small(command.words))
            if command.target:
                (folder / command.target).write_text(ended.out)
    return found


def give(folder, found):
    """Write the files that blocks are, but what a package is installed by."""
    for block in found:
        if block.file and block.file != "pyproject.toml":
            (folder / block.file).write_text(block.text)


def test_commands_run_with_small_settings(done):
    assert len(done) > 20
    forgiven = {command.words for command in pages.COMMANDS if command.forgiven}
    failed = {words: ended.err for words, ended in done.items() if ended.code and words not in forgiven}
    assert failed == {}
    assert all(ended.code in (0, 3) for ended in done.values())


def test_metrics_and_manifests_have_the_keys_of_the_page(done, folder):
    """docs/reference/artifacts.md names what a run writes, and nothing that it does not."""
    named = documented()
    for stage, run in (("teacher", "t-ocr"), ("coldstart", "init-sft"), ("distill", "student")):
        rows = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        keys = {key for row in rows for key in json.loads(row) if not key.startswith("reward/")}
        keys = {FAMILIES.get(key.partition("/")[0], key) if "/" in key else key for key in keys}
        page = {key for key, stages in named["metrics.jsonl"].items() if stage in stages}
        assert keys <= page
        assert {key for key in page - keys if "watch" not in key} <= BY_SETTING
    manifest = json.loads((folder / "runs" / "student" / "manifest.json").read_text())
    assert set(named["manifest.json"]) == set(manifest)
    result = json.loads((folder / "runs" / "eval-student" / "eval" / "ocr.json").read_text())
    assert set(named["eval/<suite>.json"]) == set(result)


def documented():
    """The first column of each table of the page, by the heading above it, with the second one."""
    found, part = {}, None
    for line in (pages.ROOT / "docs/reference/artifacts.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            part = found.setdefault(line[3:].strip("`"), {})
        elif line.startswith("| `") and part is not None:
            cells = line.strip("|").split(" | ")
            part |= {key.strip(" `"): cells[1] for key in cells[0].split(",")}
    return found


def test_every_file_of_a_run_is_on_the_page(done, folder):
    page = (pages.ROOT / "docs/reference/artifacts.md").read_text(encoding="utf-8")
    for run in (folder / "runs").iterdir():
        for path in run.iterdir():
            assert f"`{path.name}" in page, path


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in FREE}))
def test_a_page_runs_as_it_is_written(page, tmp_path):
    """In a shell, from an empty folder that has the files which the page gives."""
    give(tmp_path, (block for block in pages.BLOCKS if block.page == page))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in SHIMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(pages.ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    for block in (block for block in FREE if block.page == page):
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, f"{block}\n{ended.stderr[-3000:]}"
