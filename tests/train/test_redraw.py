"""Rollouts with rewards: handed over batch by batch; fresh groups for flat ones, pictures for those without a score."""

import dataclasses

import pytest
import torch
from support.tiny import TEXTS, make_draw, make_sampler

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.steps import log_prob
from flowopd_cli.core.types import RewardResult
from flowopd_cli.train import collect
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.partition import Partition
from flowopd_cli.train.redraw import Redraw
from flowopd_cli.train.routes import Teacher


def brightness(images, prompts):
    """A made-up reward: the mean of the picture."""
    total = images.flatten(1).mean(dim=1)
    return RewardResult(total, {"brightness": total}, torch.ones(len(prompts), dtype=torch.bool))


class AtOnce:
    """Scores when asked for the result; ``log`` keeps what happens."""

    def __init__(self, log, score=brightness):
        self.log, self.score, self.batches = log, score, []

    def submit(self, batch):
        self.log.append([prompt.id for prompt in batch[1]])
        self.batches.append(batch)

    def results(self):
        self.log.append("result")
        return [self.score(*batch) for batch in self.batches]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_rewards_in_batches_are_those_of_all_pictures_at_once(trainee, batch):
    sampler, draw, log = make_sampler(trainee), make_draw(), []
    got = collect.Grader(trainee, lambda: AtOnce(log), batch)(sampler, draw)
    whole = collect.rollout(trainee, sampler, draw, batch=batch)
    expected = collect.with_rewards(collect.with_images(trainee, whole, batch=batch), brightness)
    assert torch.equal(got.trajectory.latents, whole.trajectory.latents)
    assert torch.equal(got.trajectory.log_probs, whole.trajectory.log_probs)
    torch.testing.assert_close(got.rewards.total, expected.rewards.total, atol=1e-6, rtol=1e-5)
    assert torch.equal(got.rewards.valid, expected.rewards.valid)
    assert got.prompts == draw.prompts
    assert got.images is None


def test_a_batch_is_handed_over_before_the_next_is_drawn_and_asked_for_after_the_reference(trainee, monkeypatch):
    log, velocity = [], trainee.velocity

    def logged(*arguments, **options):
        log.append(trainee.adapters.active)
        return velocity(*arguments, **options)

    monkeypatch.setattr(trainee, "velocity", logged)
    grader = collect.Grader(trainee, lambda: AtOnce(log), 2, Teacher(None, 1.0))
    rolled = grader(make_sampler(trainee, steps=2), make_draw())
    policy = ["policy"] * 2
    assert log == [*policy, ["p0", "p1"], *policy, ["p2", "p3"], None, None, "result"]
    assert rolled.anchor_velocity.shape == (4, 2, 4, 4, 4)
    assert not rolled.trajectory.latents.requires_grad


def test_nobody_is_asked_to_score_no_picture(trainee):
    log, draw = [], Draw((), torch.zeros(0, dtype=torch.long), ())
    rolled = collect.Grader(trainee, lambda: AtOnce(log), 2, Teacher(None, 1.0))(make_sampler(trainee), draw)
    assert log == ["result"]
    assert len(rolled.rewards) == len(rolled.cond) == len(rolled.trajectory.latents) == 0
    assert rolled.trajectory.log_probs.shape == (0, 4)


def test_the_first_updates_ratio_is_one_for_the_rollouts_own_probabilities_are_the_old_ones(trainee):
    sampler = make_sampler(trainee)
    rolled = collect.Grader(trainee, lambda: AtOnce([]), 4)(sampler, make_draw())
    (batch,) = next(collect.step_batches(rolled, sampler, updates=1, micro=100, seed=0))
    with trainee.adapters.use("policy"), torch.no_grad():
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    step = sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)
    new = log_prob(step, batch.next_latents)
    torch.testing.assert_close(torch.exp(new - batch.old_log_prob), torch.ones(len(batch)), atol=1e-5, rtol=0)


class World:
    """Draws and scores without a model: a group's rewards are ``scores[group]``, then ``later[attempt]``."""

    def __init__(self, trainee, scores, later=()):
        self.sampler, self.trainee = make_sampler(trainee), trainee
        self.scores, self.later, self.asked = scores, list(later), []

    def rolled(self, prompts, groups, scores, seed):
        draw = Draw(tuple(prompts), torch.tensor(groups), tuple(range(seed, seed + len(groups))))
        rolled = collect.rollout(self.trainee, self.sampler, draw)
        total = torch.tensor(scores, dtype=torch.float32)
        rewards = RewardResult(total, {"made up": total}, ~total.isnan())
        return dataclasses.replace(rolled, rewards=rewards, anchor_velocity=rolled.trajectory.latents[:, 1:])

    def first(self):
        groups = [g for g in range(len(self.scores)) for _ in range(2)]
        prompts = [Prompt(f"old{g}", TEXTS[0], "a") for g in groups]
        return self.rolled(prompts, groups, [value for pair in self.scores for value in pair], 0)

    def fresh(self, tried, chosen):
        self.asked.append((list(tried), list(chosen)))
        groups = [g for g in chosen for _ in range(2)]
        first = len(tried)
        prompts = tuple(Prompt(f"new{first + i // 2}", TEXTS[1], "a") for i in range(len(groups)))
        return Draw(prompts, torch.tensor(groups), tuple(range(1000 + 2 * first, 1000 + 2 * first + len(groups))))

    def grade(self, draw):
        scores = [value for _ in range(len(draw.prompts) // 2) for value in self.later.pop(0)]
        return self.rolled(draw.prompts, draw.group.tolist(), scores, draw.seeds[0])

    def run(self, most):
        rolled = self.first()
        scores = collect.scores_of_all(rolled)
        return rolled, *Redraw(self.grade).with_fresh_groups(rolled, scores, self.fresh, most=most)


FLAT, NONE, SOME = (0.5, 0.5), (torch.nan, torch.nan), (0.25, 0.75)


def test_a_flat_group_gives_its_place_to_a_fresh_one_with_some_spread(trainee):
    world = World(trainee, [SOME, FLAT, SOME, NONE], [FLAT, SOME, SOME])
    before, rolled, replaced = world.run(5)
    assert world.asked == [([], [1, 3]), ([1, 3], [1])]
    assert replaced == 2
    assert [prompt.id for prompt in rolled.prompts] == ["old0"] * 2 + ["new2"] * 2 + ["old2"] * 2 + ["new1"] * 2
    assert torch.equal(rolled.group, before.group)
    assert rolled.rewards.total.tolist() == [0.25, 0.75] * 4
    expected = world.rolled(world.fresh([1, 3], [1]).prompts, [1, 1], SOME, 1004)
    rows, kept = torch.tensor([2, 3]), torch.tensor([0, 1, 4, 5])
    torch.testing.assert_close(rolled.trajectory.latents[rows], expected.trajectory.latents, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rolled.trajectory.log_probs[rows], expected.trajectory.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rolled.anchor_velocity[rows], expected.anchor_velocity, atol=1e-6, rtol=1e-5)
    assert torch.equal(rolled.cond.embeds[rows], expected.cond.embeds)
    assert torch.equal(rolled.trajectory.latents[kept], before.trajectory.latents[kept])
    assert collect.scores_of_all(rolled).flat == []


@pytest.mark.parametrize(("most", "asked"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 1])])
def test_no_more_are_drawn_than_allowed(trainee, most, asked):
    world = World(trainee, [SOME, FLAT, SOME, FLAT], [FLAT] * 3)
    before, rolled, replaced = world.run(most)
    assert [group for _, chosen in world.asked for group in chosen] == asked
    assert replaced == 0
    assert torch.equal(rolled.trajectory.latents, before.trajectory.latents)


def test_groups_with_spread_are_left_alone(trainee):
    world = World(trainee, [SOME, SOME])
    before, rolled, replaced = world.run(9)
    assert (world.asked, replaced) == ([], 0)
    assert rolled is before


class Refilling(World):
    """The same with redrawn pictures: ``later`` has the scores of each attempt."""

    def grade(self, draw):
        self.asked.append(([p.id for p in draw.prompts], draw.group.tolist(), list(draw.seeds)))
        return self.rolled(draw.prompts, draw.group.tolist(), self.later.pop(0)[: len(draw.prompts)], draw.seeds[0])

    def refilled(self, most):
        rolled, redraw = self.first(), Redraw(self.grade)
        seeds = lambda numbers: [2000 + n for n in numbers]  # noqa: E731
        after, scores = redraw.refilled(rolled, collect.scores_of_all(rolled), seeds, most=most)
        return rolled, after, scores, redraw.pictures


HALF = (0.5, torch.nan)


def test_a_picture_without_a_score_gives_its_place_to_another_of_its_prompt(trainee):
    world = Refilling(trainee, [SOME, HALF, NONE], [(0.1, torch.nan, 0.3), (0.7,)])
    before, after, scores, count = world.refilled(9)
    first = (["old1", "old2", "old2"], [1, 2, 2], [2000, 2001, 2002])
    assert world.asked == [first, (["old2"], [2], [2003])]
    assert (count, bool(scores.result.valid.all())) == (4, True)
    assert after.rewards.total.tolist() == pytest.approx([0.25, 0.75, 0.5, 0.1, 0.7, 0.3])
    assert (after.prompts, after.group.tolist()) == (before.prompts, before.group.tolist())
    expected = [
        world.rolled(before.prompts[3:], [1, 2, 2], (0, 0, 0), 2000),
        world.rolled(before.prompts[4:5], [2], (0,), 2003),
    ]
    latents = torch.cat([r.trajectory.latents for r in expected])[[0, 3, 2]]
    torch.testing.assert_close(after.trajectory.latents[3:], latents, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after.anchor_velocity[3:], latents[:, 1:], atol=1e-6, rtol=1e-5)
    assert torch.equal(after.trajectory.latents[:3], before.trajectory.latents[:3])


@pytest.mark.parametrize(("most", "sizes"), [(0, []), (2, [2]), (5, [3, 2]), (7, [3, 3, 1])])
def test_pictures_that_never_get_a_score_cost_no_more_than_allowed(trainee, most, sizes):
    world = Refilling(trainee, [HALF, NONE], [(torch.nan,) * 3] * 3)
    before, after, scores, count = world.refilled(most)
    assert [len(asked[0]) for asked in world.asked] == sizes
    assert count == most
    assert scores.result.valid.tolist() == [True, False, False, False]
    assert torch.equal(after.trajectory.latents, before.trajectory.latents)


def test_each_of_two_processes_draws_its_own_pictures_with_the_numbers_of_one(trainee):
    """The first process has groups 0 and 2; the second is simulated by what it would gather."""
    world = Refilling(trainee, [HALF, HALF, HALF], [(0.1, 0.2, 0.3)])
    whole = world.first()
    valid, numbers = iter([[False], [True]]), []

    def gather(part):
        """The rows of the second process beside those of the first."""
        good = next(valid)[0]
        rewards = RewardResult(torch.tensor([0.5, 0.2]), {}, torch.tensor([True, good]))
        return [part, (torch.tensor([2, 3]), torch.tensor([1, 1]), ("a", "a"), rewards.total, rewards.valid, {})]

    rows = torch.tensor([0, 1, 4, 5])
    redraw = Redraw(world.grade, Partition(rows, 6, gather))
    own = whole[rows]
    scores = collect.scores_of_all(own, redraw.partition)
    after, scores = redraw.refilled(own, scores, lambda n: numbers.extend(n) or n, most=4)
    assert (numbers, redraw.pictures) == ([0, 2], 3)
    assert after.rewards.valid.all()
    assert scores.result.valid.all()
