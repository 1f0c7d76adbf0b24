"""Truncated files and flipped bits are detected wherever the files are used."""

import random
import shutil

import pytest
from support import toyruns
from support.forks import Kill

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs import inspect as runs
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.run import RunDir

CHECKPOINT = ("state.safetensors", "state.json", "origin.json", "checksums.json")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "checksums.json")
TIMES = 20


def truncated(data, draw):
    return data[: draw.randrange(len(data))]


def flipped(data, draw):
    place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


DAMAGES = pytest.mark.parametrize("damage", [truncated, flipped])


@pytest.fixture(scope="module")
def copy(whole, tmp_path_factory):
    """A copy of the undisturbed teacher, to be damaged and mended."""
    return RunDir(shutil.copytree(whole.paths["teacher"], tmp_path_factory.mktemp("damaged") / "r"), writes=False)


def damages(path, damage):
    """Damage a file in many ways, one after the other, and mend it at the end."""
    whole, draw = path.read_bytes(), random.Random(f"{path.name}/{damage.__name__}")
    for _ in range(TIMES):
        path.write_bytes(damage(whole, draw))
        yield
    path.write_bytes(whole)


def faults(run):
    return [finding for finding in runs.verify(run.path) if not finding.ok]


@DAMAGES
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_detected(copy, damage, name):
    steps, seen = copy.checkpoints.steps(), 0
    assert copy.checkpoints.newest()[0] == steps[-1]
    for _ in damages(copy.checkpoints.path(steps[-1]) / name, damage):
        assert copy.checkpoints.newest()[0] == steps[-2]
        (fault,) = faults(copy)
        assert (fault.kind, fault.name) == ("checkpoint", f"checkpoints/step-{steps[-1]:06d}")
        seen += 1
    assert seen == TIMES
    assert copy.checkpoints.newest()[0] == steps[-1]
    assert faults(copy) == []


@DAMAGES
@pytest.mark.parametrize("name", ADAPTER)
@pytest.mark.parametrize("folder", ["adapter", "best"])
def test_a_damaged_adapter_is_detected(copy, damage, name, folder):
    home, seen = copy.path / folder, 0
    references = [str(home)] + ([str(copy.path)] if folder == "adapter" else [])
    for _ in damages(home / name, damage):
        for text in references:
            with pytest.raises(ArtifactError, match="the adapter is damaged") as refused:
                AdapterRef.parse(text).resolve()
            assert str(refused.value).startswith(f"{text}: ")
        assert {fault.kind for fault in faults(copy)} == {"file", "adapter"}
        seen += 1
    assert seen == TIMES
    assert AdapterRef.parse(references[0]).resolve().path == home


@pytest.mark.parametrize("name", ["adapter", "checkpoints/step-000005"])
def test_a_missing_file_is_detected(copy, name, tmp_path):
    for file in sorted((copy.path / name).glob("*.safetensors")):
        file.rename(tmp_path / file.name)
        assert faults(copy)
        (tmp_path / file.name).rename(file)
    assert faults(copy) == []


def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_used(forks, whole, tmp_path):
    path = tmp_path / "r"
    end = next(i for i, (_, changed) in enumerate(whole.made["teacher"].changes) if ".staging-adapter" in changed)
    assert forks.run(*whole.commands["teacher"], "--out", path, kill=Kill(change=end + 1), below=path).killed
    state = RunDir(path).checkpoints.path(5) / "state.safetensors"
    state.write_bytes(flipped(state.read_bytes(), random.Random(0)))
    ended = forks.run("teacher", "--resume", path)
    assert ended.code == 0, ended.err
    assert "checkpoint step-000005 is damaged: going on from step-000004" in ended.err
    toyruns.check_same_end(path, whole.paths["teacher"])


@pytest.mark.parametrize("role", ["--init", "--teacher", "--anchor", "merge", "eval", "push"])
def test_a_damaged_adapter_is_refused_before_a_model_is_loaded(forks, whole, tmp_path, role):
    bad = shutil.copytree(whole.paths["other"], tmp_path / "bad")
    weights = bad / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), random.Random(1)))
    good = whole.paths["teacher"]
    init, teacher, anchor = (bad if name == role else good for name in ("--init", "--teacher", "--anchor"))
    distill = ["distill", "--init", init, "--teacher", f"geneval={teacher}", "--anchor", anchor]
    lines = {"merge": ["merge", good, bad], "eval": ["eval", "--adapter", bad], "push": ["push", bad, "--dry-run"]}
    unloadable = "from flowopd_cli.models.sd3 import SD3Model\nSD3Model.load = None\n"
    out = tmp_path / "out"
    ended = forks.run(*lines.get(role, distill), *toyruns.changes("seed=1"), "--out", out, before=unloadable)
    assert ended.code == 2, ended.err
    assert f"{bad}: the adapter is damaged" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not out.exists()
