"""Losses: one formula each, rows in and rows out ``(b,)``."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.steps import Kernel, kl, log_prob
from flowopd_cli.core.types import GaussianStep

Ratio = Literal["plain", "guarded", "unscaled"]


def clipped_surrogate(
    log_prob: Float[Tensor, " b"], old_log_prob: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip: float
) -> Float[Tensor, " b"]:
    """``max(-A r, -A clamp(r, 1 - c, 1 + c))`` with ``r = exp(log_prob - old_log_prob)`` (Flow-GRPO, eq. 5).

    Raises :class:`ValueError`: shapes differ; a ``(b, 1)`` meeting a ``(b,)`` would silently become ``(b, b)``.
    """
    _same_shape(log_prob, old_log_prob, advantage)
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def clip_fraction(log_prob: Float[Tensor, " b"], old_log_prob: Float[Tensor, " b"], clip: float) -> Float[Tensor, " b"]:
    """1 where the ratio left ``[1 - c, 1 + c]``."""
    _same_shape(log_prob, old_log_prob)
    ratio = torch.exp((log_prob - old_log_prob).detach())
    return ((ratio - 1).abs() > clip).to(log_prob.dtype)


def rescaled_log_ratio(
    kind: Ratio, log_ratio: Float[Tensor, " b"], std: Float[Tensor, " b"], divergence: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The log-ratio ``log r`` of a step's densities on another scale; ``divergence`` is ``D = KL(pi_old || pi)``.

    ``guarded`` is ``(log r + D) std``, linear in the mean and 0 on average (GRPO-Guard, arXiv 2510.22319); ``unscaled``
    is ``2 std^2 log r``, the difference of the two ``-(x' - mean)^2`` (released code of CPS).
    """
    _same_shape(log_ratio, std, divergence)
    if kind == "guarded":
        return (log_ratio + divergence) * std
    return 2 * std.square() * log_ratio if kind == "unscaled" else log_ratio


def drifting(
    log_ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], divergence: Float[Tensor, " b"], limit: float
) -> Float[Tensor, " b"]:
    """1 where ``D >= limit`` and the loss would still raise it: ``r > 1`` and ``A > 0``, or ``r < 1`` and ``A < 0``."""
    _same_shape(log_ratio, advantage, divergence)
    return ((divergence >= limit) & (log_ratio * advantage > 0)).to(log_ratio.dtype)


def masked_surrogate(
    log_ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], divergence: Float[Tensor, " b"], limit: float
) -> Float[Tensor, " b"]:
    """``-A r``, and 0 for :func:`drifting` rows (Flow-DPPO, arXiv 2606.11025)."""
    keep = drifting(log_ratio.detach(), advantage, divergence.detach(), limit) == 0
    return torch.where(keep, -advantage * torch.exp(log_ratio), 0.0)


def level_weights(
    kind: Literal["none", "equal"],
    ratio: Ratio,
    sigma: Float[Tensor, " b"],
    sigma_next: Float[Tensor, " b"],
    kernel: Kernel,
) -> Float[Tensor, " b"]:
    """The factor on a row's surrogate: 1; or the one with which its gradient is ``A noise / D`` at every level.

    For D dimensions, and for the velocity of the sampling policy. It is one over ``|d log-ratio / d v|`` of unit noise.
    """
    if kind == "none":
        return torch.ones_like(sigma)
    std = _std(kernel, sigma, sigma_next)
    scale = {"plain": 1 / std, "guarded": torch.ones_like(std), "unscaled": 2 * std}[ratio]
    return 1 / (scale * kernel.velocity_coefficient(sigma, sigma_next).abs())


def pathwise_kl(policy: GaussianStep, teacher: GaussianStep) -> Float[Tensor, " b"]:
    """``KL(policy || teacher)`` of the step, differentiated through the policy's mean only (Flow-OPD, eq. 6)."""
    return kl(policy, GaussianStep(teacher.mean.detach(), teacher.std.detach()))


def sampled_log_ratio(
    teacher: GaussianStep, policy: GaussianStep, next_latents: Float[Tensor, "b C H W"]
) -> Float[Tensor, " b"]:
    """``log pi_T(x'|x) - log pi(x'|x)`` in nats, over all D dimensions of the step, detached.

    Its policy gradient is minus the gradient of the KL. With densities that are means over the dimensions, as in
    :func:`clipped_surrogate`, it is minus the gradient of ``kl(reduce="mean")`` for any D; a mean here would divide it
    by D and let MAR dominate.
    """
    return (log_prob(teacher, next_latents, "sum") - log_prob(policy, next_latents, "sum")).detach()


def sampled_gain(
    teacher: GaussianStep, policy: GaussianStep, next_latents: Float[Tensor, "b C H W"], clip: float
) -> Float[Tensor, " b"]:
    """:func:`sampled_log_ratio` less its expectation ``-KL``, clipped at ``clip`` standard deviations of the rest.

    A term that depends on the state alone has no expected policy gradient, so removing it only removes noise. The rest
    is normal with variance ``2 KL`` under the policy.
    """
    expected = kl(policy, teacher, "sum").detach()
    bound = clip * (2 * expected).sqrt()
    return (sampled_log_ratio(teacher, policy, next_latents) + expected).clamp(-bound, bound)


def velocity_matching(velocity: Float[Tensor, "b C H W"], target: Float[Tensor, "b C H W"]) -> Float[Tensor, " b"]:
    """``1/2 mean |v - v_T|^2``: the KL of a step without noise."""
    _same_shape(velocity, target)
    return 0.5 * (velocity - target.detach()).square().flatten(1).mean(dim=1)


def negative_aware(
    velocity: Float[Tensor, "b C H W"],
    old: Float[Tensor, "b C H W"],
    target: Float[Tensor, "b C H W"],
    sigma: Float[Tensor, " b"],
    preference: Float[Tensor, " b"],
    beta: float,
) -> Float[Tensor, " b"]:
    """``(rho l(v+) + (1 - rho) l(v-)) / beta``, ``v+- = v_old +- beta (v - v_old)`` (DiffusionNFT, arXiv 2509.16117).

    ``l(v) = mean |x^ - x_0|^2 / w`` is the error of the clean latents ``x^ = x_sigma - sigma v``, and ``w`` the mean
    absolute error, detached and at least 1e-5. ``target`` is ``eps - x_0``; ``preference`` is rho, in [0, 1].
    """
    _same_shape(velocity, old, target)
    change, old = beta * (velocity - old.detach()), old.detach()

    def error(guess: Tensor) -> Tensor:
        miss = (sigma.view(-1, 1, 1, 1) * (guess - target)).double().flatten(1)
        return miss.square().mean(dim=1) / miss.detach().abs().mean(dim=1).clamp(min=1e-5)

    return ((preference * error(old + change) + (1 - preference) * error(old - change)) / beta).to(velocity.dtype)


def matching_likelihood(
    velocity: Float[Tensor, "b C H W"], target: Float[Tensor, "b C H W"], sigma: Float[Tensor, " b"], power: float
) -> Float[Tensor, " b"]:
    """``-(sigma / p) ((e + d)^p - d^p)``, ``e = mean |v - (eps - x_0)|^2``, ``d = 1e-10`` (AWM, arXiv 2509.25050).

    A surrogate of the log-likelihood of ``x_0`` at one noise level, for :func:`clipped_surrogate`.
    """
    error = 2 * velocity_matching(velocity, target)
    return -sigma / power * ((error + 1e-10) ** power - 1e-10**power)


def step_weights(
    name: Literal["kl", "kl_no_dt", "velocity"],
    sigma: Float[Tensor, " b"],
    sigma_next: Float[Tensor, " b"],
    kernel: Kernel,
) -> Float[Tensor, " b"]:
    """The factor on the closed-form KL: 1; ``|dt|`` (upstream's scale); or the one that gives ``velocity_matching``."""
    if name == "kl":
        return torch.ones_like(sigma)
    if name == "kl_no_dt":
        return sigma - sigma_next
    std = _std(kernel, sigma, sigma_next)
    variance = torch.where(std > 0, std.square(), torch.ones_like(std))
    return variance / kernel.velocity_coefficient(sigma, sigma_next).square()


def _std(kernel: Kernel, sigma: Float[Tensor, " b"], sigma_next: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    probe = sigma.new_zeros(len(sigma), 1, 1, 1)
    return kernel(probe, probe, sigma, sigma_next).std.flatten()


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(f"shapes differ: {', '.join(str(tuple(t.shape)) for t in tensors)}")
