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


def stop(text, *overrides):
    return (f"train.stop={{metric: reward, {text}}}", "train.checkpoint_every=1", *overrides)


@pytest.mark.parametrize(
    ("overrides", "rewards", "best"),
    [
        (stop("below: 0.5, patience: 2"), (0.6, 0.9, 0.7, 0.4, 0.3), 3),  # the newest within the bound
        (stop("below: 0.5, patience: 2", best("reward")[0]), (0.6, 0.9, 0.7, 0.4, 0.3), 2),  # the best within it
        (stop("above: 0.8, patience: 1", best("reward")[0]), (0.6, 0.7, 0.9), 2),
        (stop("patience: 2"), (0.6, 0.9, 0.7, 0.8), 2),  # the best by its metric
        (stop("below: 0.5, patience: 2"), (0.4, 0.4), None),
    ],
)
def test_a_stop_ends_with_the_best_checkpoint_and_a_resumed_recorder_knows_it(tmp_path, overrides, rewards, best):
    world = World(tmp_path / "r", *overrides)
    world.train(*rewards[:-1])
    assert not world.recorder.ends()
    world.train(rewards[-1])
    assert world.recorder.ends()
    assert world.recorder.best() == best
    assert [event["kind"] for event in world.run.events() if event["kind"] != "warning"] == ["stopped"]
    assert world.run.events()[-1]["iteration"] == len(rewards)
    again = world.make_recorder()
    again.resume()
    assert again.ends()
    assert again.best() == best
    assert (best or len(rewards)) in world.run.checkpoints.steps()


def test_a_metric_of_the_watch_is_refused_before_the_first_iteration(tmp_path):
    world = World(tmp_path / "r", "train.watch_every=1", "train.stop={metric: watch/rewards}")
    baseline = {"iteration": 0, "step": 0, "watch/reward": 0.5}
    with pytest.raises(RecipeError, match=r"train.stop.metric watch/rewards: .* did you mean 'watch/reward'"):
        world.recorder.row(baseline)
    with pytest.raises(RecipeError, match=r"keep_best.metric watch/reward is logged by a watch: set train.watch_every"):
        recipes.build(DATA, overrides=["train.keep_best.metric=watch/reward"])
    other = World(tmp_path / "other", "train.watch_every=1", "train.stop={metric: grad_norms}")
    other.recorder.row(baseline)  # whether the objective has such a figure is not known yet
    with pytest.raises(RecipeError, match=r"train.stop.metric grad_norms"):
        other.recorder.row({"iteration": 1, "step": 1, "grad_norm": 1.0})
