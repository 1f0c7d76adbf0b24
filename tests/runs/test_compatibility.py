"""A run directory of version 0.1.0 is read, resumed, evaluated and published."""

import json

import pytest
from support.old_run import copy_old_run

from flowopd_cli.runs.inspect import verify
from flowopd_cli.runs.run import RunDir


@pytest.fixture
def old_run(tmp_path):
    return RunDir.open(copy_old_run(tmp_path / "old"))


def test_every_file_is_read(old_run):
    assert old_run.recipe().train.iterations == 2
    assert old_run.manifest().base.ref == "toy"
    assert [row["iteration"] for row in old_run.rows()] == [1, 2]
    assert old_run.checkpoints.newest() == (2, old_run.checkpoints.path(2))
    assert old_run.checkpoints.provenance().prompts == old_run.manifest().prompts
    assert [finding for finding in verify(old_run.path) if not finding.ok] == []


def test_it_is_resumed_for_another_iteration(old_run, flowopd):
    before = old_run.manifest()
    code, out, err = flowopd("teacher", "--resume", old_run.path, "--set", "train.iterations=3")
    assert (code, out.strip()) == (0, str(old_run.path)), err
    after = old_run.manifest()
    assert [row["iteration"] for row in old_run.rows()] == [1, 2, 3]
    assert (after.status, after.run_id, after.created) == ("done", before.run_id, before.created)
    assert (after.base, after.parents, after.prompts) == (before.base, before.parents, before.prompts)


def test_it_is_evaluated_and_published(old_run, flowopd, tmp_path):
    limits = ["--limit", "2", "--set", "eval.images=1", "--set", "eval.steps=2"]
    code, out, err = flowopd(
        "eval", "--suite", "quality", "--adapter", old_run.path, *limits, "--out", tmp_path / "e", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["suites"]["quality"]["n"] == 2
    check = ["--set", "push.verify_steps=1"]
    code, out, err = flowopd("push", old_run.path, "--dry-run", *check, "--out", tmp_path / "p", "--json")
    assert code == 0, err
    assert not json.loads(out)["uploaded"]
    assert (tmp_path / "p" / "hub" / "adapter_model.safetensors").is_file()
