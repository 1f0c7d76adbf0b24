"""On-policy distillation in one pass: each step is labelled and learned where the rollout stands, which then goes on.

:func:`micro_batches` is the way in. It is a generator of the micro-batches of one optimizer step that is sent the loss
of each: ``opd``'s loss has the policy's velocity in it, with which the latents move on. No forward of the policy is
made for the rollout alone, and no trajectory is stored. The gradients are those of :mod:`flowopd_cli.train.collect`'s
rollout, labels and rows (``replay``), whose seeds and noise these are.

    steps = fused.micro_batches(fused.OnePass(model, sampler, teachers, anchor, micro=8), draw)
    batch = next(steps, None)
    while batch is not None:                        # under model.adapters.use("policy"); the loop does just this
        loss = objective(batch)
        loss.total.backward()
        batch = steps.send(loss)                    # StopIteration at the end
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.routing import route
from flowopd_cli.core.sampler import Sampler, SeededNoise
from flowopd_cli.core.types import Conditioning, Loss, Rollout, StepBatch, Trajectory
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.collect import Draw, encoded, lessons_of
from flowopd_cli.train.labels import Teacher, parcels, row_cost, velocity_of


@dataclass(frozen=True)
class OnePass:
    """Who takes part: the policy's sampler, the teacher of each task, the anchor.

    ``micro`` rows are learned at a time, and at most ``batch`` rows of teachers and anchor go through in one forward.
    """

    model: FlowModel
    sampler: Sampler
    teachers: Mapping[str, Teacher]
    anchor: Teacher | None
    micro: int = 8
    batch: int = 32


def micro_batches(
    one: OnePass, draw: Draw, finish: Callable[[Rollout], None] | None = None
) -> Generator[StepBatch, Loss, None]:
    """The micro-batches of one optimizer step over a draw: rows of one sampling step each, in the order of teachers.

    ``finish`` is given the rollout at the end, with its last latents alone; without it the rollout stops after the
    last step that teaches.

    Raises:
        RoutingError: a prompt's task has no teacher.
        ValueError: a loss came back without the policy's velocity.
    """
    cond = encoded(one.model, draw.prompts)
    order = torch.cat([torch.arange(0), *route(draw.prompts, tuple(one.teachers)).values()])
    final: list[Tensor] = [cond.embeds.new_zeros(0, *one.model.latent_shape)]  # a process may have no group
    for rows in order.split(one.micro) if len(order) else ():
        final.append((yield from _walk(one, draw, cond[rows], rows, finish is not None)))
    if finish is not None:
        latents = torch.cat(final)[order.argsort()][:, None]
        reached = Trajectory(latents, one.sampler.sigmas[-1:], None, one.sampler.stochastic[:0])
        finish(Rollout(draw.prompts, draw.group, cond, reached))


def _walk(
    one: OnePass, draw: Draw, cond: Conditioning, rows: Int[Tensor, " b"], whole: bool
) -> Generator[StepBatch, Loss, Tensor]:
    """Take some rows of a draw along the steps, teaching on the way; returns the latents reached."""
    model, sampler, lessons = one.model, one.sampler, lessons_of(one.sampler)
    prompts = tuple(draw.prompts[row] for row in rows.tolist())
    teachers = [one.teachers[prompt.task] for prompt in prompts]
    weights = dict(zip(lessons.steps, lessons.anchor, strict=True))
    noise = SeededNoise(tuple(draw.seeds[row] for row in rows.tolist()), model.latent_shape)
    x = noise.initial().to(cond.embeds.device)
    for t in range(len(sampler.sigmas) - 1 if whole else max(weights) + 1):
        if t in weights:
            loss = yield replace(_lesson(one, teachers, x, t, cond), prompts=prompts)
            velocity = _told(loss)
        else:
            with torch.no_grad(), model.adapters.use("policy"):
                velocity = model.velocity(x, sampler.levels(t, x)[0], cond, guidance=sampler.guidance)
        x = sampler.advance(velocity, x, t, noise)[0].to(x.dtype)
    return x


def _lesson(
    one: OnePass, teachers: Sequence[Teacher], x: Float[Tensor, "b C H W"], t: int, cond: Conditioning
) -> StepBatch:
    """The rows of step ``t`` with what teachers and anchor say there; one that is both is asked once."""
    sigma, sigma_next = one.sampler.levels(t, x)
    lessons = lessons_of(one.sampler)
    weight = lessons.anchor[lessons.steps.index(t)]
    asked: dict[tuple[int, Teacher], int] = {}
    target = [asked.setdefault((row, teacher), len(asked)) for row, teacher in enumerate(teachers)]
    anchor: list[int] = []
    if one.anchor is not None and weight:
        anchor = [asked.setdefault((row, one.anchor), len(asked)) for row in range(len(x))]
    rows, who = torch.tensor([row for row, _ in asked]), [teacher for _, teacher in asked]
    said = x.new_empty(len(asked), *x.shape[1:])
    for part in parcels(who, row_cost(one.model, x, cond), one.batch, classifier_free=one.model.classifier_free):
        at = rows[part]
        velocity = velocity_of(one.model, [who[i] for i in part.tolist()], x[at], sigma[at], cond[at])
        said[part] = velocity.to(said.dtype)
    return StepBatch(
        latents=x,
        next_latents=x,
        sigma=sigma,
        sigma_next=sigma_next,
        cond=cond,
        target_velocity=said[target],
        anchor_velocity=said[anchor] if anchor else None,
        anchor_weight=None if weight == 1 or one.anchor is None else x.new_full((len(x),), weight),
    )


def _told(loss: Loss) -> Float[Tensor, "b C H W"]:
    if loss.velocity is None:
        raise ValueError("the loss has no velocity in it, without which the latents cannot move on")
    return loss.velocity
