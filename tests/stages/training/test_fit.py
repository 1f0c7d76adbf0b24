"""The adapter that a training saves: the moving average with every optimizer step in it."""

import pytest
import torch
from safetensors.torch import load_file
from support import copies
from support.tiny import TARGETS, TEXTS

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent
from flowopd_cli.train import loop


@pytest.fixture
def distill(pipeline_folder, tmp_path):
    """Distills the guided base into an adapter, one optimizer step an iteration; returns the run."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))

    def run(name, iterations, *overrides, resume=False):
        model = {"pretrained": str(pipeline_folder), "device": "cpu", "resolution": None, "max_sequence_length": 4}
        train = {"iterations": iterations, "groups": 1, "group_size": 2, "updates": 1, "lr": 0.01, "sample_every": 0}
        tree = {
            "stage": "distill",
            "model": model,
            "adapter": {"rank": 2, "alpha": 4, "targets": list(TARGETS)},
            "sampling": {"steps": 2, "guidance": 1.0},
            "prompts": [{"source": str(tmp_path / "a.txt"), "task": "a"}],
            "routing": {"a": {"ref": "base", "guidance": 2.0}},
            "train": {**train, "checkpoint_every": 1, "keep_checkpoints": 9},
        }
        plan = Plan.of(recipes.build(tree, overrides=overrides))
        path = tmp_path / name
        directory = RunDir.open(path) if resume else RunDir.create(path, "distill")
        run_stage(plan, directory, Silent(), resume=resume)
        return directory

    return run


def checkpoint(run, step, role):
    """An adapter in a checkpoint, by parameter name."""
    tensors = load_file(run.checkpoints.path(step) / "state.safetensors")
    return {name.removeprefix(f"{role}/"): value for name, value in tensors.items() if name.startswith(f"{role}/")}


def saved(folder):
    """A saved adapter, by parameter name."""
    pairs = read_adapter(folder)[1].items()
    return {f"{module}.{side}": factor for module, p in pairs for side, factor in (("lora_A", p.a), ("lora_B", p.b))}


def averaged(run, *updates):
    """The average after ``updates`` at these steps, by its formula."""
    average = {key: value if key.endswith("A") else torch.zeros_like(value) for key, value in start_of(run).items()}
    for step in updates:
        decay, policy = min((1 + step) / (10 + step), 0.9), checkpoint(run, step, "policy")
        average = {key: decay * value + (1 - decay) * policy[key] for key, value in average.items()}
    return average


def start_of(run):
    """The average before its first update: the new adapter."""
    return checkpoint(run, 1, "policy_ema")


@pytest.mark.parametrize(("every", "iterations", "updates"), [(8, 1, [1]), (2, 3, [2, 3]), (2, 4, [2, 4])])
def test_the_saved_average_has_the_last_steps_too(distill, every, iterations, updates):
    run = distill("r", iterations, f"train.ema_every={every}")
    average, expected = saved(run.adapter_dir), averaged(run, *updates)
    assert average.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, atol=1e-6, rtol=1e-5)
    assert any(value.any() for name, value in average.items() if name.endswith("B"))


def test_the_best_adapter_has_the_last_steps_too(distill):
    keep = "train.keep_best={metric: iteration, direction: min}"
    run = distill("r", 3, "train.ema_every=8", keep)
    for name, value in averaged(run, 1).items():
        torch.testing.assert_close(saved(run.best_dir)[name], value, atol=1e-6, rtol=1e-5)


def test_a_continued_run_ends_as_one_in_one_piece(distill):
    whole = distill("whole", 5, "train.ema_every=4")
    parts = distill("parts", 2, "train.ema_every=4")
    first = saved(parts.adapter_dir)
    distill("parts", 5, "train.ema_every=4", resume=True)
    end, expected = saved(parts.adapter_dir), saved(whole.adapter_dir)
    assert all(torch.equal(end[name], expected[name]) for name in expected)
    assert not all(torch.equal(end[name], first[name]) for name in first)
    states = [load_file(run.checkpoints.path(5) / "state.safetensors") for run in (whole, parts)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


STOP = "train.stop={metric: iteration, above: 1, patience: 2}"


def test_a_stop_saves_the_best_checkpoint_and_can_be_lifted(distill, flowopd):
    run = distill("r", 5, STOP, "train.ema_decay=0")
    assert [row["iteration"] for row in run.rows()] == [1, 2, 3]
    for folder in (run.adapter_dir, run.best_dir):
        assert all(torch.equal(saved(folder)[name], value) for name, value in checkpoint(run, 1, "policy").items())
    assert "train.stop ended it" in flowopd("distill", "--resume", run.path)[2]
    distill("r", 5, "train.stop=null", "train.ema_decay=0", resume=True)
    whole = distill("whole", 5, "train.ema_decay=0")
    assert all(torch.equal(saved(run.adapter_dir)[name], value) for name, value in saved(whole.adapter_dir).items())


def test_a_stop_with_a_damaged_best_checkpoint_is_an_error_and_can_end_with_the_next(distill):
    stop = "train.stop={metric: iteration, above: 2, patience: 2}"
    run = distill("r", 5, stop, "train.ema_decay=0")
    (run.checkpoints.path(2) / "state.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"step-000002: train.stop ends .* it is damaged; remove it and --resume"):
        distill("r", 5, stop, "train.ema_decay=0", resume=True)
    run.checkpoints.remove([2])
    distill("r", 5, stop, "train.ema_decay=0", resume=True)
    assert run.manifest().metrics["best_iteration"] == 1
    assert all(torch.equal(saved(run.adapter_dir)[name], t) for name, t in checkpoint(run, 1, "policy").items())


def test_without_an_average_the_policy_is_saved(distill):
    run = distill("r", 2, "train.ema_decay=0")
    policy = checkpoint(run, 2, "policy")
    assert all(torch.equal(saved(run.adapter_dir)[name], value) for name, value in policy.items())


@pytest.mark.parametrize(
    ("stage", "train"),
    [
        ("coldstart", {"iterations": 4}),  # one optimizer step each, whatever train.updates is
        ("teacher", {"iterations": 2, "groups": 1, "group_size": 2, "updates": 3}),  # two pictures, so two steps each
    ],
)
def test_the_learning_rate_falls_to_the_end_of_the_steps_that_a_run_makes(
    stage, train, tmp_path, pipeline_folder, monkeypatch
):
    factors, lr_factor = [], loop.lr_factor
    monkeypatch.setattr(loop, "lr_factor", lambda *arguments: factors.append(lr_factor(*arguments)) or factors[-1])
    copies.prepare(tmp_path, pipeline_folder)
    copies.train(tmp_path / "r", copies.recipe(stage, tmp_path, pipeline_folder, schedule="linear", **train))
    assert factors == pytest.approx([1, 0.75, 0.5, 0.25])
