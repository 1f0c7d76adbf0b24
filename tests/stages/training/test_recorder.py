"""The checkpoints, the best metric and the samples that a recorder writes."""

import pytest
import torch

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RecipeError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.recorder import RunRecorder
from flowopd_cli.system.progress import Silent
from flowopd_cli.train.checkpoint import TrainState

DATA = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}


class World:
    """A run that gets rows and checkpoints as from the loop; ``exported`` are the steps of ``best/``."""

    def __init__(self, path, *overrides):
        self.recipe = recipes.build(DATA, overrides=[*overrides, "train.keep_checkpoints=1"])
        self.run = RunDir.create(path, "teacher")
        self.run.start(self.recipe)
        self.exported, self.step = [], 0
        self.samples = []
        self.recorder = self.make_recorder()

    def make_recorder(self):
        return RunRecorder(self.run, Silent(), self.recipe.train, self.exported.append, self.samples.append)

    def train(self, *rewards):
        """One iteration for each reward, and a checkpoint when it is due."""
        for reward in rewards:
            self.step += 1
            self.recorder.row({"iteration": self.step, "step": self.step, "seconds_learn": 1, "reward": reward})
            if self.step % self.recipe.train.checkpoint_every == 0:
                state = TrainState(self.step, self.step, {"policy/x": torch.zeros(1)})
                self.recorder.checkpoint(self.step, state)


def best(metric, direction="max", every=1):
    return (f"train.keep_best={{metric: {metric}, direction: {direction}}}", f"train.checkpoint_every={every}")


@pytest.mark.parametrize(
    ("direction", "rewards", "steps", "exported"),
    [
        ("max", (0.1, 0.5, 0.3, 0.2), [2, 4], [1, 2]),
        ("max", (0.1, 0.2, 0.3), [3], [1, 2, 3]),
        ("max", (0.5, 0.5), [1, 2], [1]),
        ("min", (0.4, 0.1, 0.3), [2, 3], [1, 2]),
        ("max", (float("nan"), 0.1, 0.0), [2, 3], [2]),
    ],
)
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, direction, rewards, steps, exported):
    world = World(tmp_path / "r", *best("reward", direction))
    world.train(*rewards)
    assert world.run.checkpoints.steps() == steps
    assert world.exported == exported
    assert world.make_recorder().figures()["best_iteration"] == exported[-1]


def test_the_best_is_that_of_a_mean_since_the_checkpoint_before(tmp_path):
    """Means 0.35 and 0.4: a single iteration of 0.6 is luck."""
    world = World(tmp_path / "r", *best("reward", every=2))
    world.train(0.1, 0.6, 0.4, 0.4)
    assert world.exported == [2, 4]


def test_without_a_metric_the_newest_are_kept_and_nothing_is_exported(tmp_path):
    world = World(tmp_path / "r", "train.checkpoint_every=1")
    world.train(0.1, 0.5, 0.3)
    assert world.run.checkpoints.steps() == [3]
    assert world.exported == []
    assert world.make_recorder().figures() == {"reward": 0.3}


def test_a_metric_that_is_not_logged_is_refused_after_the_first_iteration(tmp_path):
    world = World(tmp_path / "r", *best("rewards"))
    with pytest.raises(
        RecipeError, match=r"train.keep_best.metric rewards: .* did you mean 'reward'\?; it logs reward$"
    ):
        world.train(0.1)


def test_sample_pictures_are_drawn_when_due_and_after_a_resume_only_when_missing(tmp_path):
    world = World(tmp_path / "r", "train.sample_every=2")
    for iteration in (1, 2, 3):
        world.recorder.sample(iteration, last=iteration == 3)
    assert world.samples == [2, 3]
    world.run.sample_file(2).parent.mkdir(exist_ok=True)
    world.run.sample_file(2).touch()
    for iteration in (1, 2, 4):
        world.recorder.sample(iteration, last=False, resumed=True)
    assert world.samples == [2, 3, 4]
