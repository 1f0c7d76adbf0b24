"""``train.stop`` on the toy world: a reward that is hacked and a training that collapses end with what was before."""

import pytest
from safetensors.torch import load_file
from support.recorders import Notes

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.runs import inspect
from flowopd_cli.runs.run import RunDir

NFT = (
    *("algorithm=nft", "sampling.kernel=ode", "sampling.steps=4", "adapter.rank=4", "adapter.alpha=8"),
    *("train.groups=2", "train.group_size=6", "train.ema_decay=0", "train.sample_every=0", "train.iterations=20"),
)


def bright(images, prompts):
    """A reward that pictures without any content satisfy."""
    return images.mean((1, 2, 3)).tolist()


def perform(path, *overrides, resume=False):
    built = recipes.build(recipes.read(recipes.find("toy/teacher-quality-grpo")), overrides=[*NFT, *overrides])
    run, notes = RunDir.open(path) if resume else RunDir.create(path, "teacher"), Notes()
    run_stage(Plan.of(built), run, notes, resume=resume)
    return run, notes.notes


def check_ends_with(run, step, last):
    """The run was stopped after iteration ``last`` and its adapter is that of the checkpoint of ``step``."""
    assert run.manifest().status == "done"
    assert run.rows()[-1]["iteration"] == last
    assert [event["iteration"] for event in run.events() if event["kind"] == "stopped"] == [last]
    assert run.manifest().metrics["best_iteration"] == step
    state = load_file(run.checkpoints.path(step) / "state.safetensors")
    for folder in (run.adapter_dir, run.best_dir):
        for module, pair in read_adapter(folder)[1].items():
            assert (pair.b == state[f"policy/{module}.lora_B"]).all()
    assert [finding for finding in inspect.verify(run.path) if not finding.ok] == []


@pytest.mark.slow
def test_a_training_that_collapses_ends_with_the_checkpoint_before(tmp_path, flowopd):
    collapsing = ("train.lr=0.02", "train.checkpoint_every=1", "train.stop={metric: grad_norm, above: 10, patience: 1}")
    run, notes = perform(tmp_path / "r", *collapsing)
    norms = [row["grad_norm"] for row in run.rows()]
    assert norms[-1] > 10 > max(norms[:-1])
    check_ends_with(run, len(norms) - 1, len(norms))
    assert notes[-1] == f"the adapter is that of checkpoint {len(norms) - 1}, the best"
    before = (run.adapter_dir / "adapter_model.safetensors").read_bytes()
    _, out, err = flowopd("teacher", "--resume", run.path)
    assert out == f"{run.path}\n"
    assert "is already done, train.stop ended it; --set train.stop=null goes further" in err
    _, notes = perform(tmp_path / "r", *collapsing, "train.iterations=30", resume=True)
    assert "to go further: --set train.stop=null" in notes[0]
    check_ends_with(run, len(norms) - 1, len(norms))
    assert (run.adapter_dir / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_reward_that_is_hacked_ends_with_the_checkpoint_before_the_fall_of_another(tmp_path):
    run, _ = perform(
        tmp_path / "r",
        *("train.lr=0.003", "train.checkpoint_every=2", f"rewards=[{{name: '{__name__}:bright'}}]"),
        *("train.watch_every=2", "watch.rewards=[{name: quality}]", "watch.groups=4", "watch.group_size=2"),
        "train.stop={metric: watch/reward/quality, below: 0.52, patience: 1}",
    )
    watched = [row for row in run.rows() if "watch/brightness" in row][1:]
    quality = [row["watch/reward/quality"] for row in watched]
    assert max(quality) > 0.55
    assert quality[-1] < 0.52 <= min(quality[:-1])
    assert watched[-1]["watch/brightness"] > watched[0]["watch/brightness"] + 0.05
    check_ends_with(run, watched[-2]["iteration"], watched[-1]["iteration"])
