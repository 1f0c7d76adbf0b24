"""Rollouts of a made-up velocity: windows, seeded noise, stored states and their replay."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.queries import Query
from flowopd_cli.core.sampler import Sampler, SeededNoise, choose_trained_steps, draw_window
from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import ODE, log_prob, make_kernel
from flowopd_cli.core.types import Conditioning

SHAPE = (2, 3, 3)
COND = Conditioning(torch.zeros(3, 1, 1))
NOISE = SeededNoise((1, 2, 3), SHAPE)


def velocity(latents, sigma, cond, *, guidance):
    return torch.sin(2 * latents) * (0.5 + sigma.view(-1, 1, 1, 1)) + 0.1 * guidance


def sampler(steps=4, kernel="flow_sde", window=None, guidance=1.0):
    sigmas = flow_sigmas(steps, 3.0)
    return Sampler(sigmas, make_kernel(kernel, 0.7, sigmas), guidance, window)


def rolled(chosen, noise=NOISE, **options):
    return chosen.rollout(velocity, noise.initial(), COND[: len(noise.seeds)], noise, **options)


def replayed(chosen, trajectory, t):
    """The log-probability of the stored step ``t`` from the stored states alone."""
    x, x_next = trajectory.latents[:, t].float(), trajectory.latents[:, t + 1].float()
    sigma, sigma_next = (trajectory.sigmas[i].float().expand(len(x)) for i in (t, t + 1))
    v = velocity(x, sigma, COND, guidance=chosen.guidance)
    return log_prob(chosen.step(v, x, sigma, sigma_next), x_next)


@pytest.mark.parametrize(
    ("steps", "window", "expected"),
    [
        (1, None, []),
        (2, None, [0]),
        (4, None, [0, 1, 2]),
        (10, (2, 5), [2, 3, 4]),
        (10, (0, 1), [0]),
        (4, (2, 4), [2]),
        (10, (8, 11), [8]),
    ],
)
def test_stochastic_steps_are_the_window_without_the_last_step(steps, window, expected):
    assert sampler(steps, window=window).stochastic.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("kernel", ["flow_sde", "cps", "ode"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_schedules_of_any_length_end_in_finite_latents(kernel, steps):
    trajectory = rolled(sampler(steps, kernel))
    assert trajectory.latents.shape == (3, steps + 1, *SHAPE)
    assert torch.isfinite(trajectory.latents).all()
    assert torch.equal(trajectory.latents[:, 0], NOISE.initial())
    assert torch.equal(trajectory.final, trajectory.latents[:, -1])


def test_the_last_step_is_euler():
    chosen = sampler()
    trajectory = rolled(chosen)
    x, (sigma, sigma_next) = trajectory.latents[:, -2], trajectory.sigmas[-2:].float()
    step = ODE()(velocity(x, sigma.expand(3), COND, guidance=1.0), x, sigma.expand(3), sigma_next.expand(3))
    assert torch.equal(trajectory.final, step.mean)
    assert (trajectory.log_probs[:, -1] == 0).all()


def test_steps_outside_the_window_are_those_of_the_ode():
    windowed, plain = rolled(sampler(window=(2, 3))), rolled(sampler(kernel="ode"))
    assert torch.equal(windowed.latents[:, :3], plain.latents[:, :3])
    assert not torch.equal(windowed.latents[:, 3], plain.latents[:, 3])
    assert (windowed.log_probs != 0).any(dim=0).tolist() == [False, False, True, False]


def test_noise_of_a_row_does_not_depend_on_its_batch():
    alone = SeededNoise((2,), SHAPE)
    assert torch.equal(NOISE.initial()[1], alone.initial()[0])
    assert torch.equal(NOISE.at(3)[1], alone.at(3)[0])
    assert torch.equal(rolled(sampler()).latents[1], rolled(sampler(), alone).latents[0])


def test_noise_differs_between_steps_seeds_and_the_start():
    draws = [NOISE.initial(), NOISE.at(0), NOISE.at(1)]
    flat = torch.cat([part.flatten(1) for part in draws])
    assert len(torch.unique(flat, dim=0)) == 9


@pytest.mark.parametrize("kernel", ["flow_sde", "cps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_replaying_stored_states_gives_exactly_the_same_log_probs(kernel, dtype):
    chosen = sampler(10, kernel)
    trajectory = rolled(chosen, storage_dtype=dtype)
    assert trajectory.latents.dtype == dtype
    for t in chosen.stochastic.nonzero().flatten().tolist():
        assert torch.equal(replayed(chosen, trajectory, t), trajectory.log_probs[:, t])


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**40))
def test_a_window_starts_within_its_range(size, low, spread, seed):
    start, stop = draw_window(size, low, low + spread, seed)
    assert low <= start <= low + spread
    assert stop - start == size


TRAINED = tuple(range(9))


@pytest.mark.parametrize(
    "options", [{}, {"query": Query(4)}, {"every": 3}, {"query": Query(5, (5, 2)), "probability": 0.4}]
)
def test_trained_are_a_function_of_the_seed(options):
    assert choose_trained_steps(TRAINED, 3, **options) == choose_trained_steps(TRAINED, 3, **options)
    assert (len({choose_trained_steps(TRAINED, seed, **options) for seed in range(50)}) > 1) is bool(options)


def test_without_a_choice_every_step_teaches_with_the_whole_anchor():
    trained = choose_trained_steps((2, 3, 5), 0)
    assert (trained.steps, trained.anchor) == ((2, 3, 5), (1.0, 1.0, 1.0))
    assert choose_trained_steps((2, 3, 5), 0, query=Query(7)) == trained


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 12))
def test_chosen_trained_are_in_order_and_the_anchor_is_on_every_kth(seed, steps, every):
    trained = choose_trained_steps(TRAINED, seed, query=Query(steps), every=every)
    assert len(set(trained.steps)) == steps
    assert list(trained.steps) == sorted(trained.steps)
    places = [i for i, weight in enumerate(trained.anchor) if weight]
    assert {trained.anchor[i] for i in places} <= {float(every)}
    assert all(b - a == every for a, b in pairwise(places))
    assert len(places) in (steps // every, -(-steps // every))


@pytest.mark.parametrize("options", [{"every": 3}, {"every": 4}, {"probability": 0.3}, {"query": Query(3), "every": 2}])
def test_every_step_and_its_anchor_count_alike_on_average(options):
    """Each step teaches ``steps / 9`` of the time; given that, the anchor's weight has expectation 1."""
    draws, taught, anchor = 6000, torch.zeros(9), torch.zeros(9)
    for seed in range(draws):
        trained = choose_trained_steps(TRAINED, seed, **options)
        taught[list(trained.steps)] += 1
        anchor[list(trained.steps)] += torch.tensor(trained.anchor)
    share = (options.get("query", Query()).steps or 9) / 9
    noise = 5 * (max(options.get("every", 1), 1 / options.get("probability", 1)) / draws / share) ** 0.5  # 5 sigma
    torch.testing.assert_close(taught / draws, torch.full((9,), share), atol=5 * (0.25 / draws) ** 0.5, rtol=0)
    torch.testing.assert_close(anchor / taught, torch.ones(9), atol=noise, rtol=0)
