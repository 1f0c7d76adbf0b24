"""Losses against hand values, and the direction in which each of them moves a policy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from flowopd_cli.core.losses import (
    clip_fraction,
    clipped_surrogate,
    drifting,
    level_weights,
    masked_surrogate,
    matching_likelihood,
    negative_aware,
    pathwise_kl,
    rescaled_log_ratio,
    sampled_log_ratio,
    step_weights,
    velocity_matching,
)
from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import CPS, ODE, FlowSDE, kl, log_prob, make_kernel
from flowopd_cli.core.types import GaussianStep

SHAPE = (3, 1, 2, 2)


def step(mean, std=0.5):
    return GaussianStep(mean, torch.full((len(mean), 1, 1, 1), std, dtype=mean.dtype))


def randn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def descended(loss, mean, rate=0.1):
    """``mean`` after one step of gradient descent on the sum of ``loss(mean)``."""
    leaf = mean.clone().requires_grad_()
    loss(leaf).sum().backward()
    return mean - rate * leaf.grad


def moved_step(seed=0):
    """Noise, the mean it was added to, another mean, and the state drawn with a deviation of 0.3."""
    noise, old, new = randn(seed), randn(seed + 1), randn(seed + 1) + 0.1 * randn(seed + 2)
    return noise, old, new, old + 0.3 * noise


def rescaled(kind, old, new, drawn):
    ours, theirs = step(new, 0.3), step(old, 0.3)
    change = log_prob(ours, drawn) - log_prob(theirs, drawn)
    return rescaled_log_ratio(kind, change, ours.std.flatten(), kl(ours, theirs))


def test_the_guarded_log_ratio_is_linear_in_the_mean_and_has_no_bias():
    """``mean(noise (mean - mean_old))``: opposite noise cancels, which in the plain log-ratio leaves ``-2 D``."""
    noise, old, new, drawn = moved_step()
    guarded = rescaled("guarded", old, new, drawn)
    torch.testing.assert_close(guarded, (noise * (new - old)).mean(dim=(1, 2, 3)), atol=1e-15, rtol=1e-11)
    mirrored = old - 0.3 * noise
    torch.testing.assert_close(guarded, -rescaled("guarded", old, new, mirrored), atol=1e-15, rtol=1e-11)
    both = rescaled("plain", old, new, drawn) + rescaled("plain", old, new, mirrored)
    torch.testing.assert_close(both, -2 * kl(step(new, 0.3), step(old, 0.3)), atol=1e-15, rtol=1e-11)


def test_the_unscaled_log_ratio_is_that_of_the_squared_distances():
    _, old, new, drawn = moved_step()
    expected = ((drawn - old).square() - (drawn - new).square()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(rescaled("unscaled", old, new, drawn), expected, atol=1e-15, rtol=1e-11)


@pytest.mark.parametrize(
    ("ratio", "advantage", "divergence", "expected"),
    [
        (1.2, 2.0, 0.9e-3, -2.4),  # near enough
        (1.2, 2.0, 1e-3, 0.0),  # too far, and on its way away
        (0.8, -2.0, 1e-3, 0.0),
        (0.8, 2.0, 1e-3, -1.6),  # too far, but on its way back
        (1.2, -2.0, 1e-3, 2.4),
        (1.2, 0.0, 1e-3, 0.0),
    ],
)
def test_masked_surrogate_by_hand(ratio, advantage, divergence, expected):
    new = vector(math.log(ratio)).requires_grad_()
    loss = masked_surrogate(new, vector(advantage), vector(divergence), 1e-3)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([expected])
    assert new.grad.tolist() == pytest.approx([expected])  # -A r is its own derivative by log r
    dropped = drifting(new.detach(), vector(advantage), vector(divergence), 1e-3)
    assert dropped.tolist() == [float(expected == 0 and advantage != 0)]


@pytest.mark.parametrize("ratio", ["plain", "guarded", "unscaled"])
@pytest.mark.parametrize("name", ["flow_sde", "cps"])
def test_equal_level_weights_leave_the_noise_times_the_advantage_as_the_gradient(name, ratio):
    sigmas = flow_sigmas(10, 3.0)
    kernel, sigma, sigma_next = make_kernel(name, 0.7, sigmas), sigmas[:9], sigmas[1:10]
    shape = (9, 1, 2, 2)
    noise, old, latents = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    advantage = torch.linspace(-2, 2, 9).double()
    theirs = kernel(old, latents, sigma, sigma_next)
    drawn = theirs.mean + theirs.std * noise

    def loss(velocity):
        ours = kernel(velocity, latents, sigma, sigma_next)
        change = log_prob(ours, drawn) - log_prob(theirs, drawn)
        scaled = rescaled_log_ratio(ratio, change, ours.std.flatten(), kl(ours, theirs))
        surrogate = clipped_surrogate(scaled, torch.zeros_like(scaled), advantage, 0.2)
        return level_weights("equal", ratio, sigma, sigma_next, kernel) * surrogate

    expected = advantage.view(-1, 1, 1, 1) * noise / 4
    torch.testing.assert_close(gradient(loss, old), expected, atol=1e-12, rtol=1e-9)
    assert level_weights("none", ratio, sigma, sigma_next, kernel).tolist() == [1.0] * 9


def test_the_last_trained_step_of_sd35_has_a_gradient_26_times_that_of_the_first():
    kernel, sigma, sigma_next = sd35()
    factor = 1 / level_weights("equal", "plain", sigma, sigma_next, kernel)
    moments = [(0.040, 0.700), (0.058, 0.743), (0.069, 0.536), (0.084, 0.446), (0.103, 0.392)]
    moments += [(0.131, 0.353), (0.171, 0.319), (0.233, 0.282), (0.335, 0.225)]  # |d mean / d v| and deviation
    assert factor.tolist() == pytest.approx([slope / std for slope, std in moments], rel=0.01)
    assert float(factor[8] / factor[0]) == pytest.approx(26.1, abs=0.05)
    guarded = 1 / level_weights("equal", "guarded", sigma, sigma_next, kernel)
    steps = (sigma - sigma_next) * (1 + 0.7**2 / 2)  # the factor that GRPO-Guard divides by, up to a constant
    torch.testing.assert_close(guarded[1:], steps[1:])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.05, 2.0, -2.1),
        (1.5, 2.0, -2.2),  # clipped: no more than 1.1 x 2 may be won
        (0.5, 2.0, -1.0),  # not clipped: the policy has lost ground
        (0.5, -2.0, 1.8),  # clipped: no more than from 1 to 0.9 may be won
        (1.5, -2.0, 3.0),  # not clipped
        (1.5, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    loss = clipped_surrogate(vector(math.log(ratio)), vector(0.0), vector(advantage), 0.1)
    assert loss.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 0.0), (1.09, 0.0), (1.11, 1.0), (0.91, 0.0), (0.89, 1.0)])
def test_clip_fraction_by_hand(ratio, expected):
    assert clip_fraction(vector(math.log(ratio)), vector(0.0), 0.1).tolist() == [expected]


def test_beyond_the_clip_there_is_no_gradient():
    new = vector(math.log(1.5), math.log(0.5), math.log(1.01)).requires_grad_()
    clipped_surrogate(new, vector(0.0, 0.0, 0.0), vector(1.0, -1.0, 1.0), 0.1).sum().backward()
    assert new.grad.tolist() == pytest.approx([0.0, 0.0, -1.01])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_surrogate_makes_good_samples_likelier_and_bad_ones_less_likely(advantage):
    mean, drawn = randn(0), randn(1)
    old = log_prob(step(mean), drawn)
    rows = torch.full((3,), advantage, dtype=torch.float64)
    after = descended(lambda m: clipped_surrogate(log_prob(step(m), drawn), old, rows, 0.2), mean)
    gained = log_prob(step(after), drawn) - old
    assert (gained * advantage > 0).all()


def test_the_pathwise_kl_pulls_the_policy_towards_its_target():
    mean, target = randn(0), step(randn(1))
    after = descended(lambda m: pathwise_kl(step(m), target), mean)
    assert (kl(step(after), target) < kl(step(mean), target)).all()


def test_velocity_matching_pulls_the_velocity_towards_its_target():
    velocity, target = randn(0), randn(1)
    after = descended(lambda v: velocity_matching(v, target), velocity)
    assert (velocity_matching(after, target) < velocity_matching(velocity, target)).all()


def test_velocity_matching_by_hand():
    loss = velocity_matching(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0, 5.0]]]]))
    assert loss.tolist() == [0.5 * (1 + 9) / 2]


def test_pathwise_kl_has_the_gradient_of_its_formula():
    mean, target = randn(0).requires_grad_(), randn(1).requires_grad_()
    pathwise_kl(step(mean, 0.3), step(target, 0.3)).sum().backward()
    torch.testing.assert_close(mean.grad, ((mean - target) / (4 * 0.3**2)).detach())  # 4 dimensions a row
    assert target.grad is None


def test_sampled_log_ratio_is_detached_and_positive_where_the_teacher_is_likelier():
    mean = torch.zeros(SHAPE).double().requires_grad_()
    teacher = step(torch.ones(SHAPE).double())
    ratio = sampled_log_ratio(teacher, step(mean), vector(0.2, 0.8, 1.5).view(3, 1, 1, 1).expand(SHAPE))
    assert not ratio.requires_grad
    # log-ratio of N(1, 1/4) to N(0, 1/4) at x, in each dimension: (2 x - 1) / (2 / 4)
    dimensions = math.prod(SHAPE[1:])
    assert ratio.tolist() == pytest.approx([(2 * x - 1) * 2 * dimensions for x in (0.2, 0.8, 1.5)])


def test_a_column_that_meets_a_row_is_refused():
    row, column = vector(0.1, 0.2, 0.3), vector(0.1, 0.2, 0.3)[:, None]
    for arguments in ((column, row, row), (row, column, row), (row, row, column)):
        with pytest.raises((TypeCheckError, ValueError)):
            clipped_surrogate(*arguments, 0.1)
    with pytest.raises((TypeCheckError, ValueError)):
        clip_fraction(row, column, 0.1)


def test_the_losses_refuse_unequal_shapes_without_the_type_checker_too():
    plain, row = clipped_surrogate.__wrapped__, vector(0.1, 0.2)
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\), \(2,\), \(2, 1\)"):
        plain(row, row, row[:, None], 0.1)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-5, 5), st.floats(0.001, 0.5))
def test_the_surrogate_is_never_below_the_unclipped_one(new, old, advantage, clip):
    loss = clipped_surrogate(vector(new), vector(old), vector(advantage), clip)
    assert float(loss) >= -advantage * math.exp(new - old) - 1e-9


def sd35():
    sigmas = flow_sigmas(10, 3.0)
    return make_kernel("flow_sde", 0.7, sigmas), sigmas[:9], sigmas[1:10]


def shares(weights):
    return (weights / weights.sum()).tolist()


def kl_per_squared_velocity(kernel, sigma, sigma_next):
    """The KL of two steps whose velocities differ by 1 everywhere."""
    zeros = torch.zeros(len(sigma), 1, 1, 1, dtype=torch.float64)
    ours, theirs = kernel(zeros, zeros, sigma, sigma_next), kernel(zeros + 1, zeros, sigma, sigma_next)
    return kl(ours, theirs)


def test_two_thirds_of_the_true_kl_sit_on_one_late_step_of_sd35():
    kernel, sigma, sigma_next = sd35()
    true = kl_per_squared_velocity(kernel, sigma, sigma_next)
    published = [0.0016, 0.0031, 0.0084, 0.0177, 0.0349, 0.0688, 0.1435, 0.3402, 1.105]
    assert true.tolist() == pytest.approx(published, rel=0.04)  # the table has two digits at its small end
    late = shares(true * step_weights("kl", sigma, sigma_next, kernel))
    assert late[8] == pytest.approx(0.64, abs=0.005)
    assert late[7] == pytest.approx(0.20, abs=0.005)
    assert late[6] == pytest.approx(0.083, abs=0.001)
    assert sum(late[:6]) == pytest.approx(0.078, abs=0.001)


def test_without_dt_three_quarters_sit_there():
    kernel, sigma, sigma_next = sd35()
    true = kl_per_squared_velocity(kernel, sigma, sigma_next)
    weighted = true * step_weights("kl_no_dt", sigma, sigma_next, kernel)
    late = shares(weighted)
    assert float(weighted[8]) == pytest.approx(0.2974, abs=2e-4)
    assert late[6:] == pytest.approx([0.050, 0.162, 0.758], abs=0.001)
    assert sum(late[:6]) == pytest.approx(0.030, abs=0.001)


def test_the_kl_to_the_base_weighs_four_times_as_much_as_without_dt():
    kernel, sigma, sigma_next = sd35()
    true = kl_per_squared_velocity(kernel, sigma, sigma_next)
    without = true * step_weights("kl_no_dt", sigma, sigma_next, kernel)
    assert float(true.sum() / without.sum()) == pytest.approx(4.4, abs=0.05)


@pytest.mark.parametrize("weight", ["kl", "kl_no_dt"])
def test_nearly_all_of_the_kl_of_cps_sits_on_its_last_noisy_step(weight):
    _, sigma, sigma_next = sd35()
    true = kl_per_squared_velocity(CPS(0.8), sigma, sigma_next)
    assert shares(true * step_weights(weight, sigma, sigma_next, CPS(0.8)))[8] == pytest.approx(0.998, abs=0.001)


@pytest.mark.parametrize("kernel", [FlowSDE(0.7, 0.96), CPS(0.8), ODE()])
def test_velocity_weights_turn_the_kl_into_velocity_matching(kernel):
    sigma, sigma_next = vector(0.9, 0.6, 0.3), vector(0.8, 0.4, 0.1)
    ours, theirs, latents = randn(0), randn(1), randn(2)
    divergence = kl(kernel(ours, latents, sigma, sigma_next), kernel(theirs, latents, sigma, sigma_next))
    weighted = divergence * step_weights("velocity", sigma, sigma_next, kernel)
    torch.testing.assert_close(weighted, velocity_matching(ours, theirs))


def gradient(loss, velocity):
    leaf = velocity.clone().requires_grad_()
    loss(leaf).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_gradient_of_nft_is_its_closed_form(beta):
    """``2 sigma (rho m+ / w+ - (1 - rho) m- / w-) / D`` with the misses ``m`` of the clean latents."""
    v, old, target = (randn(seed) for seed in range(3))
    sigma, rho = vector(0.2, 0.6, 1.0), vector(0.0, 0.3, 1.0)
    wide = sigma.view(-1, 1, 1, 1)
    good, bad = wide * (old + beta * (v - old) - target), wide * (old - beta * (v - old) - target)

    def unit(miss):
        return miss / miss.abs().mean(dim=(1, 2, 3), keepdim=True)

    share = rho.view(-1, 1, 1, 1)
    expected = 2 * wide * (share * unit(good) - (1 - share) * unit(bad)) / v[0].numel()
    found = gradient(lambda x: negative_aware(x, old, target, sigma, rho, beta), v)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_nft_of_a_policy_equal_to_its_copy_is_weighted_flow_matching():
    """There the gradient is ``(2 rho - 1)`` times that of the normalized error, for any beta; none at rho = 1/2."""
    v, target, sigma = randn(0), randn(2), vector(0.3, 0.3, 0.3)
    ones = torch.ones_like(sigma)
    matching = gradient(lambda x: negative_aware(x, v, target, sigma, ones, 1.0), v)
    for rho in (0.0, 0.5, 0.8):
        for beta in (0.1, 1.0):
            found = gradient(lambda x, r=rho, b=beta: negative_aware(x, v, target, sigma, r * ones, b), v)
            torch.testing.assert_close(found, (2 * rho - 1) * matching, atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize(("rho", "nearer"), [(1.0, True), (0.0, False)])
def test_nft_attracts_good_pictures_and_repels_bad_ones(rho, nearer):
    v, target, sigma = randn(0), randn(2), vector(0.5, 0.5, 0.5)
    moved = descended(lambda x: negative_aware(x, v, target, sigma, torch.full_like(sigma, rho), 1.0), v)
    before, after = ((guess - target).square().flatten(1).sum(1) for guess in (v, moved))
    assert ((after < before) == nearer).all()


def test_nft_does_not_divide_by_an_error_of_zero():
    v, sigma = randn(0), vector(0.5, 0.5, 0.5)
    assert negative_aware(v, v, v, sigma, vector(1, 0.5, 0), 1.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_the_gradient_of_the_matching_likelihood_is_its_closed_form(power):
    """``-sigma (e + d)^(p - 1) 2 (v - u) / D``; it rises towards the target."""
    v, target, sigma = randn(0), randn(2), vector(0.2, 0.6, 1.0)
    error = (v - target).square().mean(dim=(1, 2, 3), keepdim=True)
    expected = -sigma.view(-1, 1, 1, 1) * (error + 1e-10) ** (power - 1) * 2 * (v - target) / v[0].numel()
    found = gradient(lambda x: matching_likelihood(x, target, sigma, power), v)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert matching_likelihood(target, target, sigma, power).tolist() == [0, 0, 0]
    if power == 1:
        plain = -sigma * error.flatten()
        torch.testing.assert_close(matching_likelihood(v, target, sigma, power), plain, atol=1e-12, rtol=1e-12)
