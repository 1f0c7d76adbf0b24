"""References to adapters, and how often a command reads their files."""

import sys
from collections import Counter

import pytest
from support.old_run import copy_old_run

from flowopd_cli.system import files

SMALL = ("train.iterations=1", "train.groups=2", "train.group_size=2", "train.micro=2", "sampling.steps=2")
SET = [word for text in (*SMALL, "train.sample_every=0") for word in ("--set", text)]


@pytest.fixture
def hashed(monkeypatch):
    """How often each file is hashed, by its path."""
    counts, sha256_file = Counter(), files.sha256_file

    def count(path):
        counts[str(path)] += 1
        return sha256_file(path)

    for name, module in list(sys.modules.items()):
        if name.startswith("flowopd_cli") and getattr(module, "sha256_file", None) is sha256_file:
            monkeypatch.setattr(module, "sha256_file", count)
    return counts


@pytest.mark.parametrize(
    "argv",
    [
        ["merge", "a", "b"],
        ["eval", "--suite", "quality", "--adapter", "a", "--limit", "1", "--set", "eval.steps=1"],
        ["distill", "--init", "a", "--teacher", "geneval=a", "--teacher", "ocr=b", "--anchor", "b", *SET],
        ["push", "a", "--dry-run", "--set", "push.verify_steps=1"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_command_hashes_each_adapter_file_once(flowopd, hashed, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        copy_old_run(tmp_path / name)
    code, _, err = flowopd(*argv, "--out", "out")
    assert code == 0, err
    inputs = {name: number for name, number in hashed.items() if name.startswith(("a/adapter", "b/adapter"))}
    assert "a/adapter/adapter_model.safetensors" in inputs
    assert set(inputs.values()) == {1}, inputs
