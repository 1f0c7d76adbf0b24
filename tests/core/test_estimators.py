"""Which estimators have a gradient: expectations over a one-dimensional step, by Gauss-Hermite quadrature.

The policy draws ``x' ~ N(m, s^2)``; the teacher would draw ``N(c, s^2)``. The gradient of ``KL = (m - c)^2 / (2 s^2)``
by ``m`` is ``(m - c) / s^2``.
"""

import math

import numpy as np
import pytest
import torch

from flowopd_cli.core.losses import clipped_surrogate, pathwise_kl, sampled_gain, sampled_log_ratio
from flowopd_cli.core.steps import kl, log_prob
from flowopd_cli.core.types import GaussianStep

MEAN, TEACHER, STD = 0.3, 1.1, 0.4
TRUE = (MEAN - TEACHER) / STD**2
NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(40))
CLIP = 0.2


def step(mean):
    return GaussianStep(mean, torch.full((len(mean), 1, 1, 1), STD, dtype=torch.float64))


def column(value):
    return torch.full((len(NODES), 1, 1, 1), value, dtype=torch.float64)


def expected_gradient(loss):
    """``E[d loss / d mean]`` over the policy's own draws, for ``loss(policy, drawn)`` of one row a node."""
    mean = column(MEAN).requires_grad_()
    drawn = (MEAN + STD * NODES).view(-1, 1, 1, 1)
    probability = WEIGHTS / math.sqrt(2 * math.pi)
    (loss(step(mean), drawn) * probability).sum().backward()
    return float(mean.grad.sum())


def surrogate(policy, drawn, reward):
    new = log_prob(policy, drawn)
    return clipped_surrogate(new, new.detach(), reward, CLIP)


def test_a_detached_kl_times_the_ratio_has_no_expected_gradient():
    state_only = -kl(step(column(MEAN)), step(column(TEACHER)))
    got = expected_gradient(lambda policy, drawn: surrogate(policy, drawn, state_only.detach()))
    assert got == pytest.approx(0, abs=1e-12)


def test_the_closed_form_has_the_true_gradient():
    got = expected_gradient(lambda policy, drawn: pathwise_kl(policy, step(column(TEACHER))))
    assert got == pytest.approx(TRUE, rel=1e-9)


def test_the_sampled_log_ratio_has_the_true_gradient_in_expectation():
    def score(policy, drawn):
        return surrogate(policy, drawn, sampled_log_ratio(step(column(TEACHER)), policy, drawn))

    assert expected_gradient(score) == pytest.approx(TRUE, rel=1e-9)


def test_a_trajectorys_kl_has_a_further_term_for_later_steps():
    """A second step starts from the first one's draw x': its KL is (slope x' - goal)^2 / 2, whatever this step does."""
    slope, goal = 0.6, -0.2
    later = (slope * (MEAN + STD * NODES) - goal) ** 2 / 2
    expected = slope * (slope * MEAN - goal)  # d E[later] / d mean

    def score(policy, drawn, rest):
        return surrogate(policy, drawn, sampled_log_ratio(step(column(TEACHER)), policy, drawn) - rest)

    own = expected_gradient(lambda policy, drawn: score(policy, drawn, 0.0))
    to_go = expected_gradient(lambda policy, drawn: score(policy, drawn, later))
    assert own == pytest.approx(TRUE, rel=1e-9)
    assert to_go == pytest.approx(TRUE + expected, rel=1e-9)


def cubature(mean, std):
    """Draws whose first three moments are the Gaussian's: ``mean ± std sqrt(D)`` along each of the D axes."""
    dims = mean.numel()
    axes = math.sqrt(dims) * torch.eye(dims, dtype=torch.float64)
    return mean + std * torch.cat([axes, -axes]).view(2 * dims, *mean.shape)


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (8, 8, 8)])
def test_the_estimators_agree_whatever_the_number_of_dimensions(shape, baseline):
    generator = torch.Generator().manual_seed(1)
    mean, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    gradients = []
    for estimator in ("pathwise", "score"):
        trained = mean.clone().requires_grad_()
        drawn = cubature(mean, STD)
        policy, teacher = step(trained.expand_as(drawn)), step(target.expand_as(drawn))
        reward = sampled_gain(teacher, policy, drawn, 1e3) if baseline else sampled_log_ratio(teacher, policy, drawn)
        loss = pathwise_kl(policy, teacher) if estimator == "pathwise" else surrogate(policy, drawn, reward)
        loss.mean().backward()
        gradients.append(trained.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


def test_the_gain_is_the_log_ratio_without_its_mean_and_has_less_noise():
    policy, teacher = step(column(MEAN)), step(column(TEACHER))
    drawn = (MEAN + STD * NODES).view(-1, 1, 1, 1)
    probability = WEIGHTS / math.sqrt(2 * math.pi)
    gain = sampled_gain(teacher, policy, drawn, 1e3)
    assert float((gain * probability).sum()) == pytest.approx(0, abs=1e-12)
    assert float((gain**2 * probability).sum()) == pytest.approx(2 * float(kl(policy, teacher)[0]), rel=1e-9)


def test_the_gain_is_clipped_in_standard_deviations():
    policy, teacher = step(column(MEAN)), step(column(TEACHER))
    drawn = (MEAN + STD * NODES).view(-1, 1, 1, 1)
    bound = 0.5 * math.sqrt(2 * float(kl(policy, teacher)[0]))
    assert float(sampled_gain(teacher, policy, drawn, 0.5).abs().max()) == pytest.approx(bound)
