"""On-policy distillation in one pass: the forward that learns a step also advances the rollout.

The generator :func:`micro_batches` is sent the loss of each micro-batch, whose velocity advances the latents. Seeds,
noise and gradients are those of a stored, labelled and replayed rollout (:mod:`flowopd_cli.train.collect`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.routing import route
from flowopd_cli.core.sampler import Sampler, SeededNoise, trained_steps
from flowopd_cli.core.types import Conditioning, Loss, Rollout, StepBatch, Trajectory
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.collect import Draw, encoded
from flowopd_cli.train.labels import Rows, label
from flowopd_cli.train.routes import Route, Teacher


@dataclass(frozen=True)
class FusedStep:
    """Model, sampler, routes and anchor; at most ``micro`` rows learn at once, at most ``batch`` are labelled."""

    model: FlowModel
    sampler: Sampler
    routes: Mapping[str, Route]
    anchor: Teacher | None
    micro: int = 8
    batch: int = 32


def micro_batches(
    setup: FusedStep, draw: Draw, finish: Callable[[Rollout], None] | None = None
) -> Generator[StepBatch, Loss, None]:
    """The micro-batches of one optimizer step over a draw: each has rows of one sampling step, sorted by teacher.

    ``finish`` receives the finished rollout, with its last latents alone; without it the rollout stops after the last
    trained step. A task without a teacher is a :class:`RoutingError`.
    """
    cond = encoded(setup.model, draw.prompts)
    order = torch.cat([torch.arange(0), *route(draw.prompts, tuple(setup.routes)).values()])
    final: list[Tensor] = [cond.embeds.new_zeros(0, *setup.model.latent_shape)]  # a process may have no group
    for rows in order.split(setup.micro) if len(order) else ():
        final.append((yield from _walk(setup, draw, cond[rows], rows, finish is not None)))
    if finish is not None:
        latents = torch.cat(final)[order.argsort()][:, None]
        reached = Trajectory(latents, setup.sampler.sigmas[-1:], None, setup.sampler.stochastic[:0])
        finish(Rollout(draw.prompts, draw.group, cond, reached))


def _walk(
    setup: FusedStep, draw: Draw, cond: Conditioning, rows: Int[Tensor, " b"], whole: bool
) -> Generator[StepBatch, Loss, Tensor]:
    """Advance some rows of a draw and yield a micro-batch at each trained step; returns the last latents."""
    model, sampler, trained = setup.model, setup.sampler, trained_steps(setup.sampler)
    prompts = tuple(draw.prompts[row] for row in rows.tolist())
    anchors = dict(zip(trained.steps, trained.anchor, strict=True))
    weights = dict(zip(trained.steps, trained.weight or (), strict=bool(trained.weight)))
    noise = SeededNoise(tuple(draw.seeds[row] for row in rows.tolist()), model.latent_shape)
    x = noise.initial().to(cond.embeds.device)
    for t in range(len(sampler.sigmas) - 1 if whole else max(anchors) + 1):
        if t in anchors:
            weight = x.new_full((len(x),), weights[t]) if weights else None
            loss = yield replace(_labelled_batch(setup, prompts, anchors[t], x, t, cond), weight=weight)
            if loss.velocity is None:
                raise ValueError("the loss carries no policy velocity, so the latents cannot advance")
            velocity = loss.velocity
        else:
            with torch.no_grad(), model.adapters.use("policy"):
                velocity = model.velocity(x, sampler.levels(t, x)[0], cond, guidance=sampler.guidance)
        x = sampler.advance(velocity, x, t, noise)[0].to(x.dtype)
    return x


def _labelled_batch(
    setup: FusedStep,
    prompts: tuple[Prompt, ...],
    weight: float,
    x: Float[Tensor, "b C H W"],
    t: int,
    cond: Conditioning,
) -> StepBatch:
    sigma, sigma_next = setup.sampler.levels(t, x)
    rows = Rows.of_states(x, sigma, cond, tuple(prompt.text for prompt in prompts))
    rows = replace(rows, sigmas_next=sigma_next, substeps=setup.sampler.substeps)
    targets = [setup.routes[prompt.task].target(prompt) for prompt in prompts]
    target, anchor = label(setup.model, rows, targets, setup.anchor if weight else None, batch=setup.batch)
    return StepBatch(
        latents=x,
        next_latents=x,
        sigma=sigma,
        sigma_next=sigma_next,
        cond=cond,
        target_velocity=target,
        anchor_velocity=anchor,
        anchor_weight=None if weight == 1 or setup.anchor is None else x.new_full((len(x),), weight),
        prompts=prompts,
    )
