"""Transition kernels: a velocity becomes a Gaussian step, with ``draw``, ``log_prob`` and ``kl``.

With ``dt = sigma_next - sigma < 0``. Densities and divergences are means over C, H, W unless ``reduce="sum"``: the
field's convention, which makes clip ranges and weights independent of the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import GaussianStep

Reduce = Literal["mean", "sum"]


class Kernel:
    """How one step moves latents, given the velocity there."""

    def __call__(
        self,
        velocity: Float[Tensor, "b C H W"],
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        sigma_next: Float[Tensor, " b"],
    ) -> GaussianStep:
        """The step's distribution, at least float32: half precision loses the log-ratios."""
        dtype = torch.promote_types(torch.promote_types(velocity.dtype, latents.dtype), torch.float32)
        mean, std = self._moments(*(tensor.to(dtype) for tensor in (velocity, latents, sigma, sigma_next)))
        return GaussianStep(mean, _rows(std))

    def velocity_coefficient(self, sigma: Float[Tensor, " b"], sigma_next: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``d mean / d velocity``, the same in every dimension."""
        raise NotImplementedError

    def _moments(self, velocity: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(b, C, H, W)`` and standard deviation ``(b,)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class FlowSDE(Kernel):
    """The marginal-preserving SDE of Flow-GRPO (arXiv 2505.05470, eq. 9): ``s = eta sqrt(sigma / (1 - sigma))``.

    ``mean = x (1 + s^2 dt / (2 sigma)) + v c_v``, ``std = s sqrt(-dt)``. At ``sigma = 1`` the noise scale diverges;
    there ``1 - sigma`` is taken at ``sigma_max``, the grid's second value.
    """

    eta: float
    sigma_max: float

    def noise_scale(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``s(sigma)``."""
        return self.eta * torch.sqrt(sigma / (1 - torch.where(sigma == 1, self.sigma_max, sigma)))

    def velocity_coefficient(self, sigma: Float[Tensor, " b"], sigma_next: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``c_v = dt (1 + s^2 (1 - sigma) / (2 sigma))``."""
        return (sigma_next - sigma) * (1 + self.noise_scale(sigma).square() * (1 - sigma) / (2 * sigma))

    def _moments(self, velocity: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        dt, s = sigma_next - sigma, self.noise_scale(sigma)
        keep = 1 + s.square() * dt / (2 * sigma)
        mean = _rows(keep) * latents + _rows(self.velocity_coefficient(sigma, sigma_next)) * velocity
        return mean, s * torch.sqrt(-dt)


@dataclass(frozen=True)
class CPS(Kernel):
    """Coefficient-preserving sampling (arXiv 2509.05952): ``s = sigma' sin(eta pi / 2)``, ``sigma'`` the next sigma.

    ``mean = x0 (1 - sigma') + x1 sqrt(sigma'^2 - s^2)``, ``std = s``; ``x0 = x - sigma v``, ``x1 = x + (1 - sigma) v``.
    """

    eta: float

    def velocity_coefficient(self, sigma: Float[Tensor, " b"], sigma_next: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``c_v = -sigma (1 - sigma') + (1 - sigma) sqrt(sigma'^2 - s^2)``."""
        return -sigma * (1 - sigma_next) + (1 - sigma) * self._preserved_noise(sigma_next)

    def _moments(self, velocity: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        clean = latents - _rows(sigma) * velocity
        noise = latents + _rows(1 - sigma) * velocity
        mean = _rows(1 - sigma_next) * clean + _rows(self._preserved_noise(sigma_next)) * noise
        return mean, sigma_next * math.sin(self.eta * math.pi / 2)

    def _preserved_noise(self, sigma_next: Tensor) -> Tensor:
        return sigma_next * math.cos(self.eta * math.pi / 2)


@dataclass(frozen=True)
class ODE(Kernel):
    """Euler's step: ``mean = x + v dt``, no noise."""

    def velocity_coefficient(self, sigma: Float[Tensor, " b"], sigma_next: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``c_v = dt``."""
        return sigma_next - sigma

    def _moments(self, velocity: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        dt = sigma_next - sigma
        return latents + _rows(dt) * velocity, torch.zeros_like(dt)


def make_kernel(name: Literal["flow_sde", "cps", "ode"], eta: float, sigmas: Float[Tensor, " T1"]) -> Kernel:
    """The kernel of a recipe; ``eta = 0`` is the ODE whatever the name."""
    if name == "ode" or eta == 0:
        return ODE()
    if name == "cps":
        return CPS(eta)
    return FlowSDE(eta, float(sigmas[1]))


def draw(step: GaussianStep, noise: Float[Tensor, "b C H W"]) -> Float[Tensor, "b C H W"]:
    """``x' = mean + std noise``."""
    return step.mean + step.std * noise


def log_prob(step: GaussianStep, x: Float[Tensor, "b C H W"], reduce: Reduce = "mean") -> Float[Tensor, " b"]:
    """Log density of ``x`` under a step of positive variance, normalization included."""
    scaled = (x - step.mean) / step.std
    density = -0.5 * scaled.square() - torch.log(step.std) - 0.5 * math.log(2 * math.pi)
    return _reduce(density, reduce)


def kl(p: GaussianStep, q: GaussianStep, reduce: Reduce = "mean") -> Float[Tensor, " b"]:
    """``KL(p || q) = (mean_p - mean_q)^2 / (2 std^2)`` of steps with the variance of ``p``; 1 replaces an ODE's 0."""
    variance = torch.where(p.std > 0, p.std.square(), torch.ones_like(p.std))
    return _reduce((p.mean - q.mean).square() / (2 * variance), reduce)


def average_velocity(
    velocity: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "b C H W"],
    sigma: Float[Tensor, " b"],
    sigma_next: Float[Tensor, " b"],
    substeps: int,
) -> Float[Tensor, "b C H W"]:
    """``(x' - x) / (sigma_next - sigma)``, where even Euler steps of ``velocity(x, sigma)`` lead from ``x`` to ``x'``.

    One Euler step with it ends where the ``substeps`` do; for one it is the velocity at ``latents``.
    """
    total, dt = velocity(latents, sigma), (sigma_next - sigma) / substeps
    for i in range(1, substeps):
        total = total + velocity(latents + dt.view(-1, 1, 1, 1) * total, sigma + i * dt)
    return total / substeps


def _rows(values: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    return values.view(-1, 1, 1, 1)


def _reduce(values: Float[Tensor, "b C H W"], reduce: Reduce) -> Float[Tensor, " b"]:
    flat = values.flatten(1)
    return flat.mean(dim=1) if reduce == "mean" else flat.sum(dim=1)
