"""Objectives: closures from a :class:`StepBatch` to a :class:`Loss`, one policy forward each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core import losses
from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.steps import log_prob
from flowopd_cli.core.types import GaussianStep, Loss, PartialMeans, StepBatch
from flowopd_cli.models.base import FlowModel

Objective = Callable[[StepBatch], Loss]


@dataclass(frozen=True)
class OPDSettings:
    """Numbers of the distillation objective; ``beta`` is MAR's weight."""

    estimator: str = "pathwise"
    step_weight: Literal["kl", "kl_no_dt", "velocity"] = "kl"
    beta: float = 0.02
    clip: float = 1e-4
    adv_clip: float = 5.0


@dataclass(frozen=True)
class GRPOSettings:
    """Numbers of GRPO's objective; ``tau`` is the KL to the sampling policy at which the mask drops a row."""

    clip: float = 1e-4
    beta: float = 0.0
    trust: Literal["clip", "mask"] = "clip"
    tau: float = 1e-5
    ratio: losses.Ratio = "plain"
    level_weight: Literal["none", "equal"] = "none"


def grpo(model: FlowModel, sampler: Sampler, settings: GRPOSettings) -> Objective:
    """Surrogate on group-relative advantages, plus ``beta`` times the KL to the base (Flow-GRPO, eq. 5).

    ``anchor_velocity`` holds the base's velocity when ``beta > 0``, ``old_velocity`` that of the rollout for the mask
    and the guarded ratio.
    """

    def objective(batch: StepBatch) -> Loss:
        velocity = model.velocity(batch.latents, batch.sigma, batch.cond, guidance=sampler.guidance)
        step = sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)
        change = log_prob(step, batch.next_latents) - _need(batch.old_log_prob, "old_log_prob")
        advantage, divergence = _need(batch.advantage, "advantage"), torch.zeros_like(change)
        if settings.trust == "mask" or settings.ratio == "guarded":
            divergence = losses.pathwise_kl(step, _step(sampler, batch, batch.old_velocity, "old_velocity"))
        ratio = losses.rescaled_log_ratio(settings.ratio, change, step.std.flatten(), divergence)
        if settings.trust == "mask":
            loss = losses.masked_surrogate(ratio, advantage, divergence, settings.tau)
            outside = losses.drifting(ratio.detach(), advantage, divergence.detach(), settings.tau)
        else:
            loss = losses.clipped_surrogate(ratio, torch.zeros_like(ratio), advantage, settings.clip)
            outside = losses.clip_fraction(ratio, torch.zeros_like(ratio), settings.clip)
        levels = (batch.sigma, batch.sigma_next, sampler.kernel)
        loss = loss * losses.level_weights(settings.level_weight, settings.ratio, *levels)
        metrics = {"clip_fraction": outside.sum(), "policy_loss": loss.sum()}
        if settings.beta:
            kl = losses.pathwise_kl(step, _step(sampler, batch, batch.anchor_velocity, "anchor_velocity"))
            loss = loss + settings.beta * kl
            metrics["kl_base"] = kl.sum()
        return _loss(loss, metrics, batch.weight)

    return objective


def opd(model: FlowModel, sampler: Sampler, settings: OPDSettings) -> Objective:
    """On-policy distillation with MAR (Flow-OPD): ``kl(policy, teacher) + beta kl(policy, anchor)`` at each step.

    ``pathwise`` differentiates the closed form through the policy's mean. ``score`` is the policy gradient of the
    sampled, detached log-ratio ``log pi_T(x'|x) - log pi(x'|x)``, with MAR still in closed form; both have the same
    expected gradient, that of the step's own KL.
    """

    def objective(batch: StepBatch) -> Loss:
        velocity = model.velocity(batch.latents, batch.sigma, batch.cond, guidance=sampler.guidance)
        step = sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)
        teacher = _step(sampler, batch, batch.target_velocity, "target_velocity")
        weight = losses.step_weights(settings.step_weight, batch.sigma, batch.sigma_next, sampler.kernel)
        kl = losses.pathwise_kl(step, teacher)
        metrics = {"kl": kl.detach().sum()}
        if settings.estimator == "pathwise":
            loss = weight * kl
        else:
            new, old = log_prob(step, batch.next_latents), _need(batch.old_log_prob, "old_log_prob")
            gain = losses.sampled_gain(teacher, step, batch.next_latents, settings.adv_clip)
            loss = losses.clipped_surrogate(new, old, weight * gain, settings.clip)
            metrics["clip_fraction"] = losses.clip_fraction(new, old, settings.clip).sum()
        if settings.beta and (batch.anchor_velocity is not None or batch.anchor_weight is None):
            anchor = _step(sampler, batch, batch.anchor_velocity, "anchor_velocity")
            penalty = settings.beta * losses.pathwise_kl(step, anchor)  # MAR (Flow-OPD, eq. 8)
            if batch.anchor_weight is not None:
                penalty = batch.anchor_weight * penalty
            loss = loss + weight * penalty
            metrics["kl_anchor"] = penalty.sum() / settings.beta
        return replace(
            _loss(loss, metrics, batch.weight), velocity=velocity.detach(), parts=_kl_parts(sampler, batch, kl)
        )

    return objective


def nft(model: FlowModel, *, guidance: float, beta: float, base_weight: float, adv_clip: float) -> Objective:
    """DiffusionNFT: pictures of high advantage attract the velocity, those of low advantage repel it.

    The preference of a row is ``A / (2 adv_clip) + 1/2``; to its loss, times ``adv_clip``, comes ``base_weight`` times
    the squared distance to the base's velocity.
    """

    def objective(batch: StepBatch) -> Loss:
        velocity = model.velocity(batch.latents, batch.sigma, batch.cond, guidance=guidance)
        slow, target = batch.slow_velocity, _need(batch.target_velocity, "target_velocity")
        slow = velocity.detach() if slow is None else slow
        preference = (_need(batch.advantage, "advantage") / (2 * adv_clip) + 0.5).clamp(0, 1)
        loss = adv_clip * losses.negative_aware(velocity, slow, target, batch.sigma, preference, beta)
        return _forward_loss(velocity, batch, loss, {"base": base_weight})

    return objective


@dataclass(frozen=True)
class AWMSettings:
    """Numbers of AWM's objective; the two weights are those of the distances to the base and to the slow copy."""

    power: float = 0.25
    clip: float = 1.0
    adv_clip: float = 5.0
    base_weight: float = 1e-3
    slow_weight: float = 1.0


def awm(model: FlowModel, settings: AWMSettings, *, guidance: float) -> Objective:
    """Advantage-weighted matching: the clipped surrogate over :func:`losses.matching_likelihood`.

    Without ``old_log_prob`` the ratio is 1 and has the gradient of the likelihood.
    """

    def objective(batch: StepBatch) -> Loss:
        velocity = model.velocity(batch.latents, batch.sigma, batch.cond, guidance=guidance)
        target = _need(batch.target_velocity, "target_velocity")
        new = losses.matching_likelihood(velocity, target, batch.sigma, settings.power)
        old = new.detach() if batch.old_log_prob is None else batch.old_log_prob
        advantage = _need(batch.advantage, "advantage") / settings.adv_clip
        loss = losses.clipped_surrogate(new, old, advantage, settings.clip)
        weights = {"base": settings.base_weight, "slow": settings.slow_weight}
        return _forward_loss(velocity, batch, loss, weights)

    return objective


def _forward_loss(velocity: Tensor, batch: StepBatch, loss: Tensor, weights: Mapping[str, float]) -> Loss:
    """A policy loss plus weighted squared distances to the velocities of the base and of the slow copy."""
    metrics = {"policy_loss": loss.sum()}
    for name, other in (("base", batch.anchor_velocity), ("slow", batch.slow_velocity)):
        if other is not None:
            distance = 2 * losses.velocity_matching(velocity, other)
            metrics[f"distance_{name}"] = distance.sum()
            loss = loss + weights.get(name, 0.0) * distance
    return _loss(loss, metrics)


def sft(model: FlowModel, guidance: float = 1.0) -> Objective:
    """Flow matching on given latents: ``1/2 mean |v - (eps - x0)|^2`` a row, in one forward.

    ``guidance`` is that with which the pictures will be drawn. Where it is the network's own input, that input is what
    learns; where it is classifier-free, the conditional velocity does.
    """
    guidance = 1.0 if model.classifier_free else guidance

    def objective(batch: StepBatch) -> Loss:
        velocity = model.velocity(batch.latents, batch.sigma, batch.cond, guidance=guidance)
        return _loss(losses.velocity_matching(velocity, _need(batch.target_velocity, "target_velocity")), {})

    return objective


def _kl_parts(sampler: Sampler, batch: StepBatch, kl: Float[Tensor, " b"]) -> PartialMeans:
    """The KL to the teacher by task (``kl/<task>``) and by sampling step (``kl_step/<index>``)."""
    labels = [prompt.task for prompt in batch.prompts or ()]
    tasks, steps = list(dict.fromkeys(labels)), len(sampler.sigmas) - 1
    levels = sampler.sigmas[:-1].to(batch.sigma.device, torch.float32)
    index = (batch.sigma[:, None] - levels).abs().argmin(dim=1)
    rows = torch.stack([kl.detach().float(), torch.ones_like(kl, dtype=torch.float32)])
    table = rows.new_zeros(2, len(tasks) + steps).index_add(1, len(tasks) + index, rows)
    if labels:
        table.index_add_(1, torch.tensor([tasks.index(task) for task in labels], device=rows.device), rows)
    return PartialMeans((*(f"kl/{task}" for task in tasks), *(f"kl_step/{i}" for i in range(steps))), table)


def _step(sampler: Sampler, batch: StepBatch, velocity: Tensor | None, name: str) -> GaussianStep:
    return sampler.step(_need(velocity, name), batch.latents, batch.sigma, batch.sigma_next)


def _need(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"the step batch carries no {name}: collection has to label it")
    return value


def _loss(rows: Float[Tensor, " b"], metrics: dict[str, Tensor], weight: Float[Tensor, " b"] | None = None) -> Loss:
    total = rows.sum() if weight is None else (weight * rows).sum()
    sums = {"loss": total, **metrics}
    return Loss(total, len(rows), {name: value.detach().to(torch.float32) for name, value in sums.items()})
