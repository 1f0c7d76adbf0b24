"""Training with a reward in another process: ``on_error`` decides whether it continues or stops."""

import sys

import pytest
import yaml
from support.workers import started

from flowopd_cli.cli import app as cli
from flowopd_cli.runs.run import RunDir

SMALL = {
    "stage": "teacher",
    "model": {"pretrained": "toy", "resolution": None, "max_sequence_length": 1},
    "adapter": {"rank": 2, "targets": ["attn.to_q"]},
    "sampling": {"steps": 2, "guidance": 1.0},
    "prompts": [{"source": "toy:ocr", "limit": 4}],
    "train": {"iterations": 3, "groups": 2, "group_size": 2, "updates": 1, "sample_every": 0, "checkpoint_every": 9},
    "grpo": {"beta": 0},
}
QUICK = {"retries": 1, "backoff": 0.01}


@pytest.fixture
def train(monkeypatch, capsys, tmp_path):
    """``flowopd teacher`` with rewards on the command line's recipe: ``(code, stderr, rows of metrics)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*rewards):
        recipe = {**SMALL, "rewards": list(rewards)}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        argv = ["flowopd", "teacher", "--recipe", "r.yaml", "--out", "run", "--force", "--quiet"]
        monkeypatch.setattr(sys, "argv", argv)
        return cli.run(), capsys.readouterr().err, RunDir.open(tmp_path / "run").rows()

    return run


def remote(worker, **options):
    return {"name": f"remote:{worker.url}", "options": {**QUICK, **options}}


def test_a_sound_worker_on_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv = ["flowopd", "teacher", "--prompts", "toy:ocr,limit=4", "--out", "run", "--quiet"]
    for name, value in SMALL["train"].items():
        argv += ["--set", f"train.{name}={value}"]
    argv += ["--set", "sampling.steps=2", "--set", "adapter.rank=2", "--set", "adapter.targets=[attn.to_q]"]
    with started(folder=tmp_path) as worker:
        monkeypatch.setattr(sys, "argv", [*argv, "--reward", f"remote:{worker.url}"])
        assert cli.run() == 0, capsys.readouterr().err
        assert sum(worker.batches) == 3 * 4
    rows = RunDir.open(tmp_path / "run").rows()
    assert all(0 < row["reward/red"] < 1 and row["invalid"] == 0 for row in rows)
    assert RunDir.open(tmp_path / "run").recipe().rewards[0].name == f"remote:{worker.url}"


@pytest.mark.parametrize("mode", ["error", "kill"])
@pytest.mark.parametrize("on_error", ["retry", "fail"])
def test_a_failing_worker_stops_the_training(train, tmp_path, mode, on_error):
    with started(mode, folder=tmp_path) as worker:
        code, err, rows = train(remote(worker, on_error=on_error))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("flowopd: error: reward red: no answer after")
    assert rows == []
    assert RunDir.open(tmp_path / "run").manifest().status == "failed"


def test_unscored_pictures_are_skipped(train, tmp_path):
    with started("error_first", folder=tmp_path) as worker:
        code, _, rows = train(remote(worker, on_error="skip", retries=0, batch=4))
    assert code == 0
    assert [row["invalid"] for row in rows] == [1, 1, 0]
    assert all(row["reward"] != 0 for row in rows)
    assert all(not isinstance(row.get("reward"), (int, float)) or not row["reward"] >= 0 for row in rows[:2])
    assert rows[2]["reward"] > 0


def test_scores_that_are_not_numbers_are_invalid(train, tmp_path):
    with started("nan", folder=tmp_path) as worker:
        code, err, rows = train(remote(worker))
    assert (code, err) == (0, "")
    assert [row["invalid"] for row in rows] == [0.5, 0.5, 0.5]
    assert all(row["reward"] > 0.2 for row in rows)


def test_a_missing_worker_is_an_error_before_the_base_is_loaded(train):
    code, err, _ = train({"name": "remote:http://127.0.0.1:1", "options": QUICK})
    assert code == 2
    assert err.startswith("flowopd: error: reward remote: no answer after 2 attempts: http://127.0.0.1:1/info:")
    assert len(err.strip().splitlines()) == 1
