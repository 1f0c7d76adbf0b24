"""Forward-process rows: their noise levels, noise and labels, and the two objectives on them."""

import dataclasses

import pytest
import torch
from support.tiny import gradients, make_draw, make_sampler, randomize

from flowopd_cli.core import losses
from flowopd_cli.train import collect, forward, objectives
from flowopd_cli.train.labels import Rows, label
from flowopd_cli.train.routes import Teacher, sole

ADVANTAGES = torch.tensor([2.0, -1.0, 0.5, -5.0])
SETTINGS = objectives.AWMSettings()
OBJECTIVES = {
    "nft": lambda model: objectives.nft(model, guidance=1.0, beta=0.5, base_weight=1e-2, adv_clip=5.0),
    "awm": lambda model: objectives.awm(model, SETTINGS, guidance=1.0),
}


@pytest.fixture
def trainee(trainee):
    """The tiny model with a slow copy that differs from the policy."""
    trainee.adapters.copy("policy", forward.SLOW)
    randomize(trainee, forward.SLOW, seed=5)
    return trainee


@pytest.fixture
def rows(trainee):
    """Rows of four pictures at two of four levels each."""
    return make_rows(trainee)


def make_rows(trainee, draw=None, **changes):
    draw, sampler = draw or make_draw(), make_sampler(trainee)
    rolled = collect.rollout(trainee, sampler, draw, adapter=forward.SLOW, keep="last")
    rolled = dataclasses.replace(rolled, advantages=ADVANTAGES[: len(rolled.prompts)])
    sigmas = sampler.sigmas[:-1]
    levels = forward.choose_levels(draw.seeds, len(sigmas), 2, "permuted")
    return forward.ForwardRows(trainee, rolled, tuple(draw.seeds), sigmas, levels, **changes)


def batches(rows, updates=1, micro=100, seed=0):
    return [list(step) for step in rows.optimizer_steps(updates, micro, seed)]


def test_permuted_levels_are_distinct_and_cover_the_grid():
    levels = forward.choose_levels(range(200), 10, 9, "permuted")
    assert all(len(set(row)) == 9 for row in levels.tolist())
    assert set(levels.flatten().tolist()) == set(range(10))
    torch.testing.assert_close(forward.choose_levels([7], 10, 9, "permuted"), levels[7:8])


def test_stratified_levels_are_one_in_each_part_without_the_first():
    levels = forward.choose_levels(range(400), 13, 6, "stratified")
    for column, part in enumerate(levels.T):
        assert set(part.tolist()) == {1 + 2 * column, 2 + 2 * column}
        assert 140 < int((part == 1 + 2 * column).sum()) < 260  # half of them: the standard deviation is 10


@pytest.mark.parametrize(("steps", "share"), [(0, 0.0), (75, 0.0), (76, 0.0075), (175, 0.75), (10_000, 0.999)])
def test_the_slow_copy_keeps_a_growing_share(steps, share):
    assert forward.slow_decay(steps, start=75, rate=0.0075, most=0.999) == pytest.approx(share)


def test_rows_are_the_noised_pictures_with_the_velocities_of_copy_and_base(trainee, rows):
    ((batch,),) = batches(rows)
    assert len(batch) == 8
    sigma = batch.sigma.view(-1, 1, 1, 1)
    pictures = collect.deal_samples(4, 1, 0)[0].repeat(2)
    clean = rows.rolled.trajectory.final[pictures]
    torch.testing.assert_close(batch.latents - sigma * batch.target_velocity, clean, atol=1e-5, rtol=0)
    noise = batch.latents + (1 - sigma) * batch.target_velocity
    assert abs(float(noise.mean())) < 0.2
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert batch.advantage.tolist() == ADVANTAGES[pictures].tolist()
    for name, velocity in ((forward.SLOW, batch.slow_velocity), (None, batch.anchor_velocity)):
        with torch.no_grad(), trainee.adapters.use(name):
            expected = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)


def test_the_noise_depends_on_picture_and_level_alone(rows):
    (whole,), parts = batches(rows)[0], batches(rows, micro=3)[0]
    torch.testing.assert_close(torch.cat([part.latents for part in parts]), whole.latents)
    seeds = [batch.latents for step in batches(rows, updates=2) for batch in step]
    dealt = {tuple(latents.flatten().tolist()) for part in seeds for latents in part}
    assert dealt == {tuple(latents.flatten().tolist()) for latents in whole.latents}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_cannot_change_the_gradient(trainee, rows, name, micro):
    objective = OBJECTIVES[name](trainee)
    whole, parts = (gradients(trainee, objective, batches(rows, micro=size)[0]) for size in (100, micro))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-6, rtol=1e-3)


def test_a_copy_equal_to_the_policy_needs_no_forward(trainee):
    """The policy's own answer stands in for the copy's: the same loss and gradient."""
    trainee.adapters.copy("policy", forward.SLOW)
    objective = OBJECTIVES["nft"](trainee)
    with_copy, without = (batches(make_rows(trainee, slow=slow))[0] for slow in (True, False))
    assert without[0].slow_velocity is None
    first, second = (gradients(trainee, objective, found) for found in (with_copy, without))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_adds_weighted_distances(trainee, rows, name):
    ((batch,),) = batches(rows)
    with torch.no_grad(), trainee.adapters.use("policy"):
        loss = OBJECTIVES[name](trainee)(batch)
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    weights = {"base": 1e-2, "slow": 0.0} if name == "nft" else {"base": 1e-3, "slow": 1.0}
    expected = loss.metrics["policy_loss"]
    for key, other in (("base", batch.anchor_velocity), ("slow", batch.slow_velocity)):
        distance = (velocity - other).square().flatten(1).mean(1).sum()
        assert float(loss.metrics[f"distance_{key}"]) == pytest.approx(float(distance), rel=1e-4)
        expected = expected + weights[key] * distance
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-4)


def test_nft_prefers_by_the_clipped_advantage(trainee, rows):
    ((batch,),) = batches(rows)
    with torch.no_grad(), trainee.adapters.use("policy"):
        loss = OBJECTIVES["nft"](trainee)(batch)
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    rho = torch.tensor([0.7, 0.4, 0.55, 0.0])[collect.deal_samples(4, 1, 0)[0].repeat(2)]
    expected = losses.negative_aware(velocity, batch.slow_velocity, batch.target_velocity, batch.sigma, rho, 0.5)
    assert float(loss.metrics["policy_loss"]) == pytest.approx(5 * float(expected.sum()), rel=1e-4)


def test_the_ratio_of_awm_is_one_at_the_rollout_and_leaves_it_afterwards(trainee, rows):
    """With the likelihoods of the rollout the surrogate is that of policy gradients; its value is ``-sum A``."""
    objective, kept = OBJECTIVES["awm"](trainee), rows.with_likelihoods(SETTINGS.power)
    ((batch,),), ((own,),) = batches(kept), batches(rows)
    for rows_ in (batch, own):
        with torch.no_grad(), trainee.adapters.use("policy"):
            value = objective(rows_).metrics["policy_loss"]
        assert float(value) == pytest.approx(-float(ADVANTAGES.sum()) * 2 / 5, rel=1e-4)
    first, second = (gradients(trainee, objective, [found]) for found in (batch, own))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-6, rtol=1e-3)
    randomize(trainee, "policy", seed=11)
    with torch.no_grad(), trainee.adapters.use("policy"):
        assert float(objective(batch).metrics["policy_loss"]) != pytest.approx(
            -float(ADVANTAGES.sum()) * 2 / 5, rel=1e-3
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_updates_split_the_rows_of_one(trainee, rows, name):
    """Without a step between them the mean of their gradients is that of one update."""
    objective, kept = OBJECTIVES[name](trainee), rows.with_likelihoods(SETTINGS.power)
    (whole,), halves = batches(kept), batches(kept, updates=2)
    expected, *parts = (gradients(trainee, objective, step) for step in (whole, *halves))
    for key, value in expected.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, value, atol=1e-6, rtol=1e-3)


def test_the_second_update_compares_the_policy_with_the_copy_and_the_likelihoods_of_the_start(trainee, rows):
    steps = rows.with_likelihoods(SETTINGS.power).optimizer_steps(2, 100, 0)

    def ratios_and_distance():
        (batch,) = next(steps)
        with torch.no_grad(), trainee.adapters.use(forward.SLOW):
            slow = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
        with torch.no_grad(), trainee.adapters.use("policy"):
            velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
        new = losses.matching_likelihood(velocity, batch.target_velocity, batch.sigma, SETTINGS.power)
        return (new - batch.old_log_prob).exp(), float((batch.slow_velocity - slow).abs().max())

    first = ratios_and_distance()
    randomize(trainee, "policy", seed=11)  # as the optimizer would
    second = ratios_and_distance()
    torch.testing.assert_close(first[0], torch.ones(4), atol=1e-5, rtol=0)
    assert float((second[0] - 1).abs().mean()) > 1e-2
    assert max(first[1], second[1]) < 1e-5


def test_a_picture_without_a_score_holds_nft_to_the_copy(trainee, rows):
    """Its advantage of 0 is a preference of 1/2: no gradient at the copy, towards it elsewhere."""
    ((batch,),) = batches(rows)
    velocity = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slow, half = batch.slow_velocity, torch.full((len(batch),), 0.5)
    losses.negative_aware(velocity, slow, batch.target_velocity, batch.sigma, half, 0.5).sum().backward()
    assert bool(((velocity.grad * (slow - velocity)).flatten(1).sum(1) < 0).all())
    trainee.adapters.copy("policy", forward.SLOW)
    ((batch,),) = batches(make_rows(trainee, base=False))
    objective = objectives.nft(trainee, guidance=1.0, beta=0.5, base_weight=0.0, adv_clip=5.0)
    scored, unscored = (
        gradients(trainee, objective, [dataclasses.replace(batch, advantage=torch.full((8,), value))])
        for value in (1.0, 0.0)
    )
    for key, value in unscored.items():
        assert float(value.abs().max()) <= 1e-4 * float(scored[key].abs().max()) + 1e-9


def test_a_picture_without_a_score_holds_awm_to_copy_and_base_alone(trainee, rows):
    ((batch,),) = batches(rows)
    batch = dataclasses.replace(batch, advantage=torch.zeros(8))

    def distances(batch):
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
        slow, base = (2 * losses.velocity_matching(velocity, v) for v in (batch.slow_velocity, batch.anchor_velocity))
        return dataclasses.replace(OBJECTIVES["awm"](trainee)(batch), total=(slow + 1e-3 * base).sum())

    found, expected = (gradients(trainee, each, [batch]) for each in (OBJECTIVES["awm"](trainee), distances))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-3)


def test_states_of_their_own_levels_are_labelled_by_several_adapters(trainee, rows):
    ((batch,),) = batches(rows)
    labelers = [Teacher("other", 1.0), Teacher(None, 1.0), Teacher("third", 2.0)]
    states = Rows.of_states(batch.latents, batch.sigma, batch.cond)
    for teacher in labelers:
        with torch.no_grad(), trainee.adapters.use(teacher.adapter):
            expected = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=teacher.guidance)
        velocity, anchored = label(trainee, states, [sole(teacher)] * len(batch), labelers[0], batch=5)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)
        first = expected if teacher is labelers[0] else first
        torch.testing.assert_close(anchored, first, atol=1e-5, rtol=1e-4)
    assert label(trainee, states, [], None, batch=5)[1] is None
