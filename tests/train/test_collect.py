"""Experience: rollouts, labels, optimizer steps and cold-start rows."""

import dataclasses
import math

import pytest
import torch
from support.tiny import hard_routes, make_draw, make_sampler

from flowopd_cli.core.sampler import SeededNoise, trained_steps
from flowopd_cli.core.types import RewardResult, Trajectory
from flowopd_cli.errors import RoutingError
from flowopd_cli.train import collect, labels
from flowopd_cli.train.partition import Partition
from flowopd_cli.train.routes import Teacher

STEPS = 4
TEACHERS = {"a": Teacher("other", 1.0), "b": Teacher("third", 3.0)}
ROUTES = hard_routes(TEACHERS)


def brightness(images, prompts):
    """A made-up reward: the mean of the picture."""
    total = images.flatten(1).mean(dim=1)
    return RewardResult(total, {"brightness": total}, torch.ones(len(prompts), dtype=torch.bool))


def scored(total, valid):
    """A reward of given figures, whatever the pictures are."""

    def score(images, prompts):
        columns = torch.tensor(total)
        return RewardResult(
            columns, {"given": torch.where(torch.tensor(valid), columns, torch.nan)}, torch.tensor(valid)
        )

    return score


@pytest.fixture
def rolled(trainee):
    return collect.rollout(trainee, make_sampler(trainee), make_draw())


@pytest.mark.parametrize("adapter", ["policy", "other", None])
def test_a_rollout_follows_its_adapter_and_gives_the_bank_back(trainee, adapter):
    sampler, draw = make_sampler(trainee), make_draw()
    got = collect.rollout(trainee, sampler, draw, adapter=adapter).trajectory
    x, cond = got.latents[:, 0], trainee.encode([p.text for p in draw.prompts])
    with trainee.adapters.use(adapter), torch.no_grad():
        velocity = trainee.velocity(x, torch.ones(4), cond, guidance=1.0)
    step = sampler.step(velocity, x, torch.ones(4), got.sigmas[1].float().expand(4))
    expected = step.mean + step.std * SeededNoise(draw.seeds, trainee.latent_shape).at(0)
    torch.testing.assert_close(got.latents[:, 1], expected, atol=1e-5, rtol=1e-5)
    assert trainee.adapters.active is None


def test_batches_change_the_speed_alone(trainee, rolled):
    small = collect.rollout(trainee, make_sampler(trainee), make_draw(), batch=3)
    torch.testing.assert_close(small.trajectory.latents, rolled.trajectory.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.trajectory.log_probs, rolled.trajectory.log_probs, atol=1e-5, rtol=1e-5)


def test_rewards_and_advantages_are_labels_of_the_rollout(trainee, rolled):
    labelled = collect.with_rewards(collect.with_images(trainee, rolled), brightness)
    labelled = collect.with_advantages(labelled, std="group", clip=5.0)
    assert torch.equal(labelled.rewards.total, labelled.images.flatten(1).mean(dim=1))
    better = labelled.rewards.total.view(2, 2).argmax(dim=1)
    assert torch.equal(labelled.advantages.view(2, 2).argmax(dim=1), better)
    torch.testing.assert_close(labelled.advantages.view(2, 2).sum(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


def test_invalid_rewards_get_no_advantage(trainee, rolled):
    score = scored([1.0, 3.0, torch.nan, 7.0], [True, True, False, True])
    labelled = collect.with_rewards(collect.with_images(trainee, rolled), score)
    advantages = collect.with_advantages(labelled, std="group", clip=5.0).advantages
    assert advantages.tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0], abs=1e-3)
    clipped = collect.with_advantages(labelled, std="group", clip=0.3).advantages
    assert clipped.tolist() == pytest.approx([-0.3, 0.3, 0, 0])


def test_reward_figures_are_means_over_valid_scores(trainee, rolled):
    score = scored([1.0, 3.0, torch.nan, 8.0], [True, True, False, True])
    figures = collect.reward_figures(
        collect.scores_of_all(collect.with_rewards(collect.with_images(trainee, rolled), score))
    )
    assert figures["reward"] == figures["reward/given"] == pytest.approx(4.0)
    assert figures["reward_std"] == pytest.approx((26 / 3) ** 0.5)  # of 1, 3 and 8
    assert (figures["invalid"], figures["flat_groups"]) == (0.25, 0.5)


def test_equal_rewards_have_no_deviation(trainee):
    rolled = collect.rollout(trainee, make_sampler(trainee), make_draw("a" * 8, "0" * 8))
    figures = collect.reward_figures(
        collect.scores_of_all(collect.with_rewards(collect.with_images(trainee, rolled), scored([0.7] * 8, [True] * 8)))
    )
    assert figures["reward_std"] == 0
    assert figures["reward"] == figures["reward/given"] == float(torch.tensor(0.7))


def test_without_a_valid_score_there_is_no_mean(trainee, rolled):
    score = scored([1.0, 3.0, 2.0, 8.0], [False] * 4)
    figures = collect.reward_figures(
        collect.scores_of_all(collect.with_rewards(collect.with_images(trainee, rolled), score))
    )
    assert math.isnan(figures["reward"])
    assert figures["invalid"] == 1.0


@pytest.mark.parametrize(
    ("kernel", "steps", "window", "expected"),
    [
        ("flow_sde", 4, None, [0, 1, 2]),
        ("flow_sde", 4, (1, 2), [1]),
        ("ode", 4, None, [0, 1, 2]),
        ("ode", 2, None, [0]),
        ("ode", 1, None, [0]),
        ("flow_sde", 1, None, [0]),
    ],
)
def test_stochastic_steps_teach_or_all_but_the_last(trainee, kernel, steps, window, expected):
    assert trained_steps(make_sampler(trainee, steps=steps, kernel=kernel, window=window)).steps == tuple(expected)


@pytest.mark.parametrize("batch", [2, 32])
def test_each_prompt_is_labelled_by_its_own_teacher_at_the_policys_latents(trainee, rolled, batch):
    target = labels.with_labels(trainee, make_sampler(trainee), rolled, ROUTES, None, batch=batch).target_velocity
    for row, prompt in enumerate(rolled.prompts):
        teacher = TEACHERS[prompt.task]
        for t in range(STEPS - 1):
            x, sigma = rolled.trajectory.latents[row : row + 1, t], rolled.trajectory.sigmas[t : t + 1].float()
            with trainee.adapters.use(teacher.adapter), torch.no_grad():
                cond = rolled.cond[row : row + 1]
                expected = trainee.velocity(x, sigma, cond, guidance=teacher.guidance)
            torch.testing.assert_close(target[row : row + 1, t], expected, atol=1e-5, rtol=1e-4)
    assert (target[:, -1] == 0).all()
    assert not target.requires_grad


def test_the_anchor_labels_every_prompt(trainee, rolled):
    sampler = make_sampler(trainee)
    anchored = labels.with_labels(trainee, sampler, rolled, None, Teacher("third", 1.0)).anchor_velocity
    same = hard_routes({task: Teacher("third", 1.0) for task in "ab"})
    torch.testing.assert_close(
        anchored, labels.with_labels(trainee, sampler, rolled, same, None).target_velocity, atol=1e-5, rtol=1e-5
    )


def test_a_prompt_without_a_teacher_is_refused(trainee, rolled):
    with pytest.raises(RoutingError, match="no teacher for task 'b'"):
        labels.with_labels(trainee, make_sampler(trainee), rolled, {"a": ROUTES["a"]}, None)


@pytest.mark.parametrize(("updates", "micro"), [(1, 100), (1, 5), (2, 4), (4, 1), (3, 2)])
def test_optimizer_steps_cover_each_sample_and_step_once(trainee, rolled, updates, micro):
    marked = dataclasses.replace(rolled, advantages=torch.arange(4).float())
    seen = []
    for micro_batches in collect.step_batches(marked, make_sampler(trainee), updates=updates, micro=micro, seed=1):
        assert all(len(batch) <= micro for batch in micro_batches)
        samples = {float(a) for batch in micro_batches for a in batch.advantage}
        rows = sum(len(batch) for batch in micro_batches)
        assert rows == 3 * len(samples)  # a sample brings all its trained steps
        seen += [
            (float(a), float(s)) for batch in micro_batches for a, s in zip(batch.advantage, batch.sigma, strict=True)
        ]
    levels = rolled.trajectory.sigmas[:3].float().tolist()
    assert sorted(seen) == sorted((float(sample), level) for sample in range(4) for level in levels)


def test_rows_carry_the_labels_of_their_sample_and_step(trainee, rolled):
    marked = labels.with_labels(trainee, make_sampler(trainee), rolled, ROUTES, None)
    b, t = torch.tensor([2, 0]), torch.tensor([1, 2])
    batch, states = collect.rows_of(marked, b, t), rolled.trajectory
    for row, (i, j) in enumerate(((2, 1), (0, 2))):
        assert torch.equal(batch.latents[row], states.latents[i, j])
        assert torch.equal(batch.next_latents[row], states.latents[i, j + 1])
        assert torch.equal(batch.target_velocity[row], marked.target_velocity[i, j])
        assert batch.old_log_prob[row] == states.log_probs[i, j]
        assert torch.equal(batch.cond.embeds[row], rolled.cond.embeds[i])
        assert (batch.sigma[row], batch.sigma_next[row]) == tuple(states.sigmas[j : j + 2].float())
    assert batch.advantage is batch.anchor_velocity is None


@pytest.mark.parametrize("kernel", ["flow_sde", "ode"])
@pytest.mark.parametrize("keep", ["all", "last", "velocities"])
def test_a_process_without_a_group_takes_part_with_no_row(trainee, kernel, keep):
    sampler, nothing = make_sampler(trainee, kernel=kernel), collect.Draw((), torch.zeros(0, dtype=torch.long), ())
    one, none = (collect.rollout(trainee, sampler, draw, keep=keep) for draw in (make_draw(), nothing))
    assert len(none.cond) == 0
    assert none.trajectory.latents.shape == (0, *one.trajectory.latents.shape[1:])
    assert (none.trajectory.log_probs is None) == (one.trajectory.log_probs is None)
    assert torch.equal(none.trajectory.sigmas, one.trajectory.sigmas)
    assert torch.equal(Trajectory.cat([one.trajectory, none.trajectory]).latents, one.trajectory.latents)
    if keep == "velocities":
        assert torch.equal(Trajectory.cat([none.trajectory, one.trajectory]).velocities, one.trajectory.velocities)
    if keep == "last":
        return
    labelled = labels.with_labels(trainee, sampler, none, ROUTES, Teacher("third", 1.0))
    assert len(collect.with_images(trainee, labelled).images) == len(labelled.target_velocity) == 0
    partition = Partition(torch.zeros(0, dtype=torch.long), 4, lambda value: [value])
    steps = list(collect.step_batches(labelled, sampler, updates=2, micro=3, seed=0, partition=partition))
    assert steps == [[], []]


def test_scores_are_gathered_once_for_figures_and_advantages(trainee, rolled):
    asked = []
    partition = Partition(torch.arange(4), 4, lambda value: asked.append(value) or [value])
    marked = collect.with_rewards(collect.with_images(trainee, rolled), brightness)
    scores = collect.scores_of_all(marked, partition)
    figures = collect.reward_figures(scores)
    got = collect.with_advantages(marked, std="group", clip=5.0, partition=partition, scores=scores)
    assert len(asked) == 1
    assert torch.equal(got.advantages, collect.with_advantages(marked, std="group", clip=5.0).advantages)
    assert figures == collect.reward_figures(collect.scores_of_all(marked))


def test_a_processs_advantages_are_those_of_the_whole_draw_with_a_deviation_for_each_task(trainee):
    draw = make_draw(tasks="aabbaabb", groups="00112233")
    rolled = collect.rollout(trainee, make_sampler(trainee), draw)
    total = torch.tensor([0.0, 1, 0.80, 0.82, 1, 0, 0.81, 0.85])
    marked = dataclasses.replace(rolled, rewards=RewardResult(total, {}, torch.ones(8, dtype=torch.bool)))
    whole = collect.with_advantages(marked, std="global", clip=5.0).advantages
    assert whole[[0, 1, 4, 5]].tolist() == pytest.approx([-1, 1, 1, -1], rel=1e-3)  # 0.5 over a deviation of 0.5
    deviation = float(total[[2, 3, 6, 7]].std(correction=0)) + 1e-4
    assert whole[[2, 3, 6, 7]].tolist() == pytest.approx([s / deviation for s in (-0.01, 0.01, -0.02, 0.02)], rel=1e-4)
    shares = (torch.tensor([0, 1, 6, 7]), torch.tensor([2, 3, 4, 5]))
    sent = [(rows, draw.group[rows], marked[rows]) for rows in shares]
    messages = [
        (rows, group, tuple(p.task for p in part.prompts), part.rewards.total, part.rewards.valid, {})
        for rows, group, part in sent
    ]
    for rows, _, part in sent:
        local = collect.with_advantages(part, std="global", clip=5.0, partition=Partition(rows, 8, lambda _: messages))
        assert torch.equal(local.advantages, whole[rows])


def test_each_reward_alone_has_advantages_and_flat_groups_of_its_own(trainee, rolled):
    """The totals of the first group are equal, its two rewards are not; the second group is flat in both."""
    scores = {"one": torch.tensor([1.0, 0, 1, 1]), "two": torch.tensor([0.0, 1, 3, 3]), "logged": torch.arange(4.0)}
    total = scores["one"] + scores["two"]
    marked = dataclasses.replace(rolled, rewards=RewardResult(total, scores, torch.ones(4, dtype=torch.bool)))
    assert collect.scores_of_all(marked).flat == [0, 1]
    each = collect.scores_of_all(marked, weights={"one": 1.0, "two": -0.5, "absent": 1.0})
    assert each.flat == [1]
    advantages = collect.with_advantages(marked, std="group", clip=5.0, scores=each).advantages
    assert advantages.tolist() == pytest.approx([1.5, -1.5, 0, 0], rel=1e-3)
