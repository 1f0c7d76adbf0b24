"""The figures that a merge prints, returns and reports."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from support.old_run import copy_old_run
from support.reported import page_of

from flowopd_cli.models.adapter_files import read_adapter, write_adapter

ZERO = "the merged update is zero: the weighted updates cancel, or each of them is 0"


@pytest.fixture
def merge(flowopd, tmp_path, monkeypatch):
    """Merges two copies of one run with further arguments: the result, and the lines on stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        copy_old_run(tmp_path / name)

    def call(*argv):
        code, out, err = flowopd("merge", "a", "b", *argv, "--out", "out", "--json")
        assert code == 0, err

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(out, parse_constant=refuse), err.splitlines()

    return call


@pytest.mark.parametrize("method", ["linear", "exact", "ties", "factor_average"])
def test_a_merge_of_zero_is_one_line_and_has_no_energy(merge, tmp_path, method):
    cut = ["--rank", "2"] if method in {"linear", "ties"} else []
    result, lines = merge("--method", method, "--weights", "1,-1", *cut)
    rank = 4 if method == "exact" else 2
    assert lines == [f"{method}: rank {rank}, {ZERO}"]
    expected = {"rank": rank, "update_norm": 0, "retained_energy": None, "relative_error": None}
    assert result["metrics"] == expected
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"] == expected
    texts = page_of(tmp_path / "out", tmp_path).texts
    assert "0" in texts[texts.index("update norm") :][:4]
    assert not {"nan", "energy retained"} & set(texts)


def test_the_mean_of_equal_adapters_is_the_adapter_itself(merge, tmp_path):
    result, lines = merge("--rank", "2")
    assert lines == ["linear: rank 2, energy retained 1.0000, error 0.0000"]
    factors = read_adapter(tmp_path / "a" / "adapter")[1].values()
    norm = math.sqrt(sum(float((f.scale * f.b.double() @ f.a.double()).square().sum()) for f in factors))
    assert result["metrics"]["update_norm"] == pytest.approx(norm, rel=1e-6)
    assert result["metrics"]["relative_error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("flag", "factor"), [("--normalize", 1), ("--no-normalize", 4), (None, 4)])
def test_normalize_divides_by_the_sum_of_the_weights(merge, tmp_path, flag, factor):
    merge("--weights", "3,1", *([flag] if flag else []))
    one, merged = (read_adapter(tmp_path / name / "adapter")[1] for name in ("a", "out"))
    for name, factors in merged.items():
        torch.testing.assert_close(factors.delta(), factor * one[name].delta(), atol=1e-6, rtol=1e-4)


def test_a_merge_names_short_targets_only_if_those_of_all_its_adapters_are_exact(merge, flowopd, tmp_path):
    merge("--method", "exact")
    config, factors = read_adapter(tmp_path / "a" / "adapter")
    assert read_adapter(tmp_path / "out" / "adapter")[0].targets == config.targets != ()
    write_adapter(tmp_path / "c", factors, replace(config, targets=()))
    assert flowopd("merge", "a", "c", "--method", "exact", "--out", "mixed")[0] == 0
    pattern = json.loads((tmp_path / "mixed/adapter/adapter_config.json").read_text())["target_modules"]
    assert all(re.fullmatch(pattern, name) for name in factors)
    assert not re.fullmatch(pattern, f"x.{next(iter(factors))}")
