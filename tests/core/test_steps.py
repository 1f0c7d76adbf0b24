"""Kernels against closed forms written out here with plain numbers, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import CPS, ODE, FlowSDE, average_velocity, draw, kl, log_prob, make_kernel
from flowopd_cli.core.types import GaussianStep

SIGMA_MAX = 0.9601
ETA = 0.7
PAIRS = [(1.0, 0.9601), (0.9133, 0.8577), (0.6022, 0.4649), (0.2780, 0.0089)]
SHAPE = (2, 3, 2)
KERNELS = [FlowSDE(ETA, SIGMA_MAX), CPS(0.8), ODE()]
level = st.floats(0.02, 0.99)


def flow_sde(x, v, t, t_next):
    """Mean and std of one number under the flow SDE: ``s = eta sqrt(t / (1 - t))``, with t = 1 seen from the grid."""
    dt = t_next - t
    s = ETA * math.sqrt(t / (1 - (SIGMA_MAX if t == 1 else t)))
    mean = x * (1 + s * s / (2 * t) * dt) + v * (1 + s * s * (1 - t) / (2 * t)) * dt
    return mean, s * math.sqrt(-dt)


def cps(x, v, t, t_next):
    """Mean and std of one number under coefficient-preserving sampling."""
    s = t_next * math.sin(0.8 * math.pi / 2)
    return (x - t * v) * (1 - t_next) + (x + (1 - t) * v) * math.sqrt(t_next**2 - s**2), s


def ode(x, v, t, t_next):
    """Euler."""
    return x + v * (t_next - t), 0.0


CLOSED = list(zip(KERNELS, (flow_sde, cps, ode), strict=True))


def tensors(count, seed=0, rows=len(PAIRS)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def grid():
    pairs = torch.tensor(PAIRS, dtype=torch.float64)
    return pairs[:, 0], pairs[:, 1]


def normal_step(seed, rows=3):
    (mean,) = tensors(1, seed, rows)
    std = torch.linspace(0.1, 1.3, rows, dtype=torch.float64).view(-1, 1, 1, 1)
    return GaussianStep(mean, std)


@pytest.mark.parametrize(("kernel", "formula"), CLOSED)
def test_mean_and_std_are_the_closed_forms(kernel, formula):
    velocity, latents = tensors(2)
    step = kernel(velocity, latents, *grid())
    for row, (t, t_next) in enumerate(PAIRS):
        for got, x, v in zip(step.mean[row].flatten(), latents[row].flatten(), velocity[row].flatten(), strict=True):
            mean, std = formula(float(x), float(v), t, t_next)
            assert float(got) == pytest.approx(mean, abs=1e-6)
            assert float(step.std[row]) == pytest.approx(std, abs=1e-6)


def test_published_std_and_velocity_coefficients_of_sd35():
    sigmas = flow_sigmas(10, 3.0)
    kernel = make_kernel("flow_sde", ETA, sigmas)
    (probe,) = tensors(1, rows=9)
    step = kernel(probe, probe, sigmas[:9], sigmas[1:10])
    stds = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225]
    coefficients = [0.040, 0.058, 0.069, 0.084, 0.103, 0.131, 0.171, 0.233, 0.335]
    assert step.std.flatten().tolist() == pytest.approx(stds, abs=6e-4)
    assert (-kernel.velocity_coefficient(sigmas[:9], sigmas[1:10])).tolist() == pytest.approx(coefficients, abs=6e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_velocity_coefficient_is_the_derivative_of_the_mean(kernel):
    velocity, latents = tensors(2)
    velocity.requires_grad_()
    kernel(velocity, latents, *grid()).mean.sum().backward()
    expected = kernel.velocity_coefficient(*grid()).view(-1, 1, 1, 1).expand_as(velocity)
    torch.testing.assert_close(velocity.grad, expected)


@pytest.mark.parametrize("kind", [lambda eta: FlowSDE(eta, SIGMA_MAX), CPS])
def test_small_eta_approaches_the_ode(kind):
    velocity, latents = tensors(2)
    near, limit = kind(1e-5)(velocity, latents, *grid()), ODE()(velocity, latents, *grid())
    torch.testing.assert_close(near.mean, limit.mean, atol=1e-7, rtol=0)
    assert float(near.std.max()) < 1e-4


@pytest.mark.parametrize("name", ["flow_sde", "cps", "ode"])
def test_eta_zero_is_the_ode_whatever_the_name(name):
    assert make_kernel(name, 0.0, flow_sigmas(4, 3.0)) == ODE()


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_true_velocity_leads_from_one_noise_level_to_the_next(kernel):
    clean, noise = tensors(2)
    sigma, sigma_next = (part.view(-1, 1, 1, 1) for part in grid())
    step = kernel(noise - clean, (1 - sigma) * clean + sigma * noise, *grid())
    kept = (step.mean - (1 - sigma_next) * clean) / noise
    torch.testing.assert_close(kept.square() + step.std.square(), sigma_next.square().expand_as(kept))


def test_density_and_divergence_agree_with_torch_distributions():
    p, (x,) = normal_step(1), tensors(1, 2, rows=3)
    q = GaussianStep(normal_step(3).mean, p.std)
    ours, theirs = Normal(p.mean, p.std), Normal(q.mean, q.std)
    torch.testing.assert_close(log_prob(p, x), ours.log_prob(x).flatten(1).mean(dim=1))
    torch.testing.assert_close(log_prob(p, x, "sum"), ours.log_prob(x).flatten(1).sum(dim=1))
    torch.testing.assert_close(kl(p, q), kl_divergence(ours, theirs).flatten(1).mean(dim=1))
    torch.testing.assert_close(kl(p, q, "sum"), kl_divergence(ours, theirs).flatten(1).sum(dim=1))


def test_gradients_agree_with_finite_differences():
    velocity, other, latents, drawn = tensors(4)
    velocity.requires_grad_()
    for kernel in KERNELS[:2]:
        teacher = kernel(other, latents, *grid())
        assert torch.autograd.gradcheck(lambda v, k=kernel: log_prob(k(v, latents, *grid()), drawn), velocity)
        assert torch.autograd.gradcheck(lambda v, k=kernel, t=teacher: kl(k(v, latents, *grid()), t), velocity)


@given(sigma=level, fraction=st.floats(0.05, 0.95), eta=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_kl_is_positive_and_zero_on_itself(sigma, fraction, eta, seed):
    ours, theirs, latents = tensors(3, seed, rows=1)
    pair = torch.tensor([sigma]).double(), torch.tensor([sigma * fraction]).double()
    for kernel in (FlowSDE(eta, SIGMA_MAX), CPS(eta), ODE()):
        p, q = kernel(ours, latents, *pair), kernel(theirs, latents, *pair)
        assert float(kl(p, q)) > 0
        assert float(kl(p, p)) == 0


@given(seed=st.integers(0, 99), sigma=level, fraction=st.floats(0.05, 0.95))
def test_ratio_of_a_step_with_itself_is_exactly_one(seed, sigma, fraction):
    velocity, latents, noise = tensors(3, seed, rows=1)
    pair = torch.tensor([sigma]), torch.tensor([sigma * fraction])
    step = FlowSDE(ETA, SIGMA_MAX)(velocity.float(), latents.float(), *pair)
    again = FlowSDE(ETA, SIGMA_MAX)(velocity.float(), latents.float(), *pair)
    x = draw(step, noise.float())
    assert float(torch.exp(log_prob(again, x) - log_prob(step, x))) == 1.0


def test_draw_is_mean_plus_std_times_noise():
    step, (noise,) = normal_step(5), tensors(1, 6, rows=3)
    drawn = draw(step, noise)
    for row in range(3):
        std = float(step.std[row])
        numbers = zip(*(part[row].flatten().tolist() for part in (step.mean, noise)), strict=True)
        assert drawn[row].flatten().tolist() == pytest.approx([mean + std * n for mean, n in numbers], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_in_float32(dtype):
    velocity, latents = (part.to(dtype) for part in tensors(2))
    step = FlowSDE(ETA, SIGMA_MAX)(velocity, latents, *grid())
    assert step.mean.dtype == step.std.dtype == torch.float32


@pytest.mark.parametrize("substeps", [1, 2, 5, 4000])
def test_an_average_velocity_of_a_linear_field_is_that_of_its_exponential(substeps):
    """``dx/dsigma = a x`` grows by ``exp(a dt)`` over a step, and by ``(1 + a dt / m)^m`` in m Euler steps."""
    x = torch.tensor([[1.3, -0.4], [0.7, 2.0]], dtype=torch.float64).view(2, 1, 1, 2)
    sigma, sigma_next, slope = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.4, 0.0]).double(), 1.7
    average = average_velocity(lambda y, _: slope * y, x, sigma, sigma_next, substeps)
    dt = (sigma_next - sigma).view(-1, 1, 1, 1)
    expected = x * ((1 + slope * dt / substeps) ** substeps - 1) / dt
    torch.testing.assert_close(average, expected, atol=1e-12, rtol=1e-10)
    if substeps == 4000:
        torch.testing.assert_close(average, x * torch.expm1(slope * dt) / dt, atol=1e-3, rtol=1e-3)
    end = ODE()(average, x, sigma, sigma_next).mean  # one step of the student ends where the small ones do
    torch.testing.assert_close(end, x * (1 + slope * dt / substeps) ** substeps, atol=1e-12, rtol=1e-10)


def test_an_average_velocity_asks_at_the_even_levels_of_each_row():
    """Of a field that depends on sigma alone it is the mean over the left ends of the parts."""
    x, sigma, sigma_next = torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 0.5]), torch.tensor([0.4, 0.3])
    average = average_velocity(lambda y, s: s.square().view(-1, 1, 1, 1) + 0 * y, x, sigma, sigma_next, 2)
    expected = torch.tensor([(1 + 0.7**2) / 2, (0.5**2 + 0.4**2) / 2])
    torch.testing.assert_close(average.flatten(), expected)
