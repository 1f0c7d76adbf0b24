"""Undisturbed runs to compare with."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import toyruns

from flowopd_cli.runs.run import RunDir

WATCHED = ("train.watch_every=2", "watch.groups=2", "watch.group_size=2")


class Whole:
    """Undisturbed runs: two teachers, their student and a cold start. ``commands`` are the lines that made them."""

    def __init__(self, root, forks):
        self.root, self._forks = root, forks
        self.paths = {name: root / name for name in ("teacher", "other", "nft", "distill", "coldstart")}
        self.commands = {
            "teacher": toyruns.teacher("quality", "train.keep_best.metric=reward"),
            "other": toyruns.teacher("geneval", "train.iterations=2", "train.keep_best=null"),
            "nft": toyruns.teacher("quality", "algorithm=nft", "sampling.kernel=ode", "nft.slow_rate=0.05", *WATCHED),
            "distill": toyruns.distill(self.paths["teacher"], self.paths["other"]),
            "coldstart": toyruns.coldstart(self.paths["teacher"], self.paths["other"]),
        }
        self.made = {name: self._make(name) for name in self.commands}

    def _make(self, name):
        ended = self._forks.run(*self.commands[name], "--out", self.paths[name], below=self.paths[name])
        assert ended.code == 0, ended.err
        return ended

    def variant(self, name, *overrides):
        """An undisturbed run with other settings."""
        path = self.root / f"{name}-{'-'.join(overrides)}"
        if not path.exists():
            ended = self._forks.run(*self.commands[name], *toyruns.changes(*overrides), "--out", path)
            assert ended.code == 0, ended.err
        return path

    def in_two(self, stage):
        """The undisturbed run of two processes."""
        path = self.root / f"{stage}-in-two"
        if not path.exists():
            ended = self._forks.run(*self.commands[stage], "--out", path, ranks=2)
            assert ended.code == 0, ended.err
        return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory, forks) -> Whole:
    """The undisturbed runs. Every iteration moves the policy, or that nothing is lost would say little."""
    made = Whole(Path(tmp_path_factory.mktemp("whole")), forks)
    for stage in ("teacher", "distill", "coldstart"):
        found = RunDir(made.paths[stage]).checkpoints
        one, two = (load_file(found.path(step) / "state.safetensors") for step in found.steps()[-2:])
        for role in ("policy", "policy_ema", "optimizer"):
            assert any(bool((one[key] != two[key]).any()) for key in one if key.startswith(f"{role}/")), role
    return made
