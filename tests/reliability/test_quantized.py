"""A training on a base in 4 bits: resumed, by two processes, recorded; its adapter in full precision."""

import json

import pytest
from safetensors.torch import load_file
from support import toyruns
from support.forks import Kill

from flowopd_cli.runs.run import RunDir

NF4 = "model.quantize=nf4"
SMALL_EVAL = ("eval.suites=[toy-ocr]", "eval.limit=2", "eval.images=1", "eval.steps=2", "eval.guidance=1")


@pytest.fixture(scope="module")
def trained(whole):
    """The undisturbed training of a teacher by DiffusionNFT."""
    return whole.variant("nft", NF4)


def test_it_is_resumed_bit_for_bit(forks, whole, trained, tmp_path):
    command = [*whole.commands["nft"], *toyruns.changes(NF4), "--out", tmp_path / "r"]
    assert forks.run(*command, kill=Kill(rows=3), below=tmp_path / "r").killed
    assert forks.run("teacher", "--resume", tmp_path / "r").code == 0
    toyruns.check_same_end(tmp_path / "r", trained)
    refused = forks.run("teacher", "--resume", trained, "--set", "model.quantize=none")
    assert f"--set model.quantize: {trained} keeps its settings" in refused.err


def test_it_learns_something_else_than_in_full_precision(whole, trained):
    one, other = (toyruns.figures(path)[-1]["reward"] for path in (trained, whole.paths["nft"]))
    assert one != other
    assert RunDir(trained).manifest().base.quantize == "nf4"
    assert RunDir(whole.paths["nft"]).manifest().base.quantize is None
    assert RunDir(trained).manifest().base.sha256 == RunDir(whole.paths["nft"]).manifest().base.sha256


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(forks, whole, trained, tmp_path):
    command = [*whole.commands["nft"], *toyruns.changes(NF4), "--out", tmp_path / "r"]
    assert forks.run(*command, ranks=2).code == 0
    one, two = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (trained, tmp_path / "r"))
    for name, weight in one.items():
        assert weight.numpy() == pytest.approx(two[name].numpy(), abs=1e-5), name


def test_its_adapter_is_evaluated_on_the_base_in_full_and_in_four_bits(forks, trained, tmp_path):
    results = {}
    for name, more in {"full": (), "four": (NF4,)}.items():
        words = ["--adapter", trained, "--out", tmp_path / name, "--json", *toyruns.changes(*SMALL_EVAL, *more)]
        ended = forks.run("eval", *words)
        assert ended.code == 0, ended.err
        results[name] = RunDir(tmp_path / name)
    assert [results[name].recipe().model.quantize for name in results] == ["none", "nf4"]
    assert [results[name].manifest().base.quantize for name in results] == [None, "nf4"]
    ended = forks.run("report", tmp_path / "full", tmp_path / "four", "--out", tmp_path / "report.html", "--json")
    assert ended.code == 0, ended.err
    assert ", nf4 base" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (bits,) = json.loads(ended.out)["less_full_precision"].values()
    assert bits["ocr"]["prompts"] == 2
    rows = json.loads((tmp_path / "full" / "manifest.json").read_text(encoding="utf-8"))
    assert rows["base"]["quantize"] is None
