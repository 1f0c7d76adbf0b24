"""The smallest trainings of the toy world, and whether one that was disturbed came to the end of one that was not."""

from pathlib import Path

from flowopd_cli.runs import inspect as runs
from flowopd_cli.runs.manifest import is_run, status_now
from flowopd_cli.runs.run import RunDir

SMALL = (
    *("train.iterations=5", "train.checkpoint_every=2", "train.sample_every=3", "train.keep_best.metric=loss"),
    *("train.groups=2", "train.group_size=2", "train.micro=2", "sampling.steps=2", "train.lr=0.01"),
    *("adapter.rank=2", "adapter.alpha=2", "adapter.targets=[attn.to_q, attn.to_v]"),
)
TWO_TASKS = "prompts=[{source: 'toy:geneval'}, {source: 'toy:ocr'}]"


def changes(*overrides):
    """``--set`` for each."""
    return [word for text in overrides for word in ("--set", text)]


def teacher(reward, *overrides):
    """The command line of a small teacher by GRPO, without ``--out``."""
    return ["teacher", "--reward", reward, "--algorithm", "grpo", *changes(*SMALL, "train.updates=2", *overrides)]


def distill(first, second, *overrides):
    """That of a small distillation of two teachers, from the first and anchored by the second."""
    roles = ["--init", first, "--teacher", f"geneval={first}", "--teacher", f"ocr={second}", "--anchor", second]
    return ["distill", *map(str, roles), *changes(TWO_TASKS, *SMALL, *overrides)]


def coldstart(first, second, *overrides):
    """That of a small cold start from two teachers."""
    roles = ["--teacher", f"geneval={first}", "--teacher", f"ocr={second}"]
    return ["coldstart", *map(str, roles), *changes(TWO_TASKS, *SMALL, "sft.samples=8", "sft.batch=4", *overrides)]


def going_on(command, path):
    """The command line that a user types after ``command`` on ``path`` was killed."""
    if not is_run(path):
        return [*command, "--out", path]
    if not RunDir(path).recipe_file.is_file():
        return [*command, "--out", path, "--force"]
    return [command[0], "--resume", path, "--allow-code"]


def listing(path):
    """Every file of a run but its lock, which a kill may leave."""
    found = (file for file in Path(path).rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    return sorted(file.relative_to(path).as_posix() for file in found)


def figures(path):
    """The logged rows without what a clock says."""
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in RunDir(path).rows()]


def check_same_end(path, whole):
    """Nothing tells a disturbed run from the whole one: adapters, states, rows, pictures and manifest are the same."""
    run, other = RunDir.open(path, writes=False), RunDir.open(whole, writes=False)
    assert status_now(path) == "done"
    train = run.recipe().train
    assert [row["iteration"] for row in run.rows()] == list(range(0 if train.watch_every else 1, train.iterations + 1))
    assert figures(path) == figures(whole)
    assert listing(path) == listing(whole)
    for name in listing(path):
        if name.endswith((".safetensors", ".png", "state.json", "adapter_config.json", "recipe.yaml")):
            assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name
    one, two = run.manifest(), other.manifest()
    for field in ("stage", "recipe_sha", "base", "parents", "prompts", "metrics"):
        assert getattr(one, field) == getattr(two, field), field
    faults = [finding for finding in runs.verify(path) if not finding.ok]
    assert faults == []
