"""What the pathwise gradient leaves out: how a change moves later states. Exact on a linear model, by its moments."""

import pytest
import torch

from flowopd_cli.core.losses import step_weights
from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import make_kernel

SIGMAS = flow_sigmas(10, 3.0).double()
KERNEL = make_kernel("flow_sde", 0.7, SIGMAS)
SIZE = 4


def objective(weights, teacher, beta, *, through_states, step_weight="kl"):
    """The expected sum of ``KL(student, teacher) + beta KL(student, base)`` of the trained steps.

    Velocities are ``(k I + W) x`` with the ``k`` of standard normal data; the base has ``W = 0``. States are normal:
    the covariance of the next ones is that of a linear map of these, and noise.
    """
    covariance, total = torch.eye(SIZE, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for sigma, sigma_next in zip(SIGMAS[:-2].view(-1, 1), SIGMAS[1:-1].view(-1, 1), strict=True):
        slope = (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)
        basis = torch.eye(SIZE, dtype=torch.float64).view(SIZE, SIZE, 1, 1)
        velocity = (slope * basis.view(SIZE, SIZE) + basis.view(SIZE, SIZE) @ weights.T).view_as(basis)
        step = KERNEL(velocity, basis, sigma.expand(SIZE), sigma_next.expand(SIZE))
        linear, std = step.mean.view(SIZE, SIZE).T, step.std.flatten()[0]
        coefficient = KERNEL.velocity_coefficient(sigma, sigma_next) / std
        states = covariance if through_states else covariance.detach()
        errors = [coefficient * (weights - teacher), beta**0.5 * coefficient * weights]
        factor = step_weights(step_weight, sigma, sigma_next, KERNEL)
        total = total + factor * sum(torch.trace(e @ states @ e.T) for e in errors) / (2 * SIZE)
        covariance = linear @ covariance @ linear.T + std**2 * torch.eye(SIZE, dtype=torch.float64)
    return total.sum()


def gradient(weights, teacher, beta=0.0, **options):
    weights = weights.clone().requires_grad_()
    (result,) = torch.autograd.grad(objective(weights, teacher, beta, **options), weights)
    return result


TEACHER = 0.4 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def missing(share, step_weight):
    """At this share of the way to the teacher: the missing part of the full gradient's norm, and the cosine."""
    weights = share * TEACHER
    full, pathwise = (gradient(weights, TEACHER, through_states=t, step_weight=step_weight) for t in (True, False))
    cosine = torch.nn.functional.cosine_similarity(full.flatten(), pathwise.flatten(), dim=0)
    return float((full - pathwise).norm() / full.norm()), float(cosine)


def test_the_full_gradient_is_that_of_the_objective():
    start = (0.3 * TEACHER).requires_grad_()
    assert torch.autograd.gradcheck(lambda weights: objective(weights, TEACHER, 0.1, through_states=True), start)


@pytest.mark.parametrize(("step_weight", "least", "most"), [("kl", 0.6, 0.75), ("velocity", 0.2, 0.25)])
def test_the_missing_part_is_large_far_from_the_teacher_and_vanishes_near_it(step_weight, least, most):
    parts, cosines = zip(*(missing(share, step_weight) for share in (0, 0.3, 0.5, 0.9, 0.99)), strict=True)
    assert least < parts[0] < most
    assert parts[-1] < 0.01
    assert list(parts) == sorted(parts, reverse=True)
    assert list(cosines) == sorted(cosines)
    assert cosines[0] > 0.8  # always a descent direction
    assert cosines[-1] > 0.9999


@pytest.mark.parametrize("step_weight", ["kl", "velocity"])
def test_the_stationary_point_with_an_anchor_hardly_moves(step_weight):
    """Without the missing part it is ``teacher / (1 + beta)``, the minimum at every state."""
    beta = 0.02
    pathwise = TEACHER / (1 + beta)
    assert gradient(pathwise, TEACHER, beta, through_states=False, step_weight=step_weight).abs().max() < 1e-12
    weights = pathwise.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=60, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(weights, TEACHER, beta, through_states=True, step_weight=step_weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert gradient(weights.detach(), TEACHER, beta, through_states=True, step_weight=step_weight).abs().max() < 1e-5
    moved = float((weights.detach() - pathwise).norm() / pathwise.norm())
    assert 0 < moved < 0.02
