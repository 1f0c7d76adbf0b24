"""One distillation iteration in each compared structure, and the passes that form the floor.

Each is a call without arguments that computes the gradients of one optimizer step over the same rows, and the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.sampler import Sampler, trained_steps
from flowopd_cli.core.types import Conditioning, Rollout
from flowopd_cli.models.base import FlowModel
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.stages.bench.world import World
from flowopd_cli.stages.training.data import iteration_sampler
from flowopd_cli.train import collect, labels, objectives
from flowopd_cli.train.fused import FusedStep, micro_batches
from flowopd_cli.train.routes import Teacher

Action = Callable[[], object]


def floor(world: World) -> dict[str, Action]:
    """The passes that every structure needs, separately for each role, once per trained step of an iteration; and
    ``forward``, the student's pass without gradients, of which a replay's rollout consists.
    """
    everyone = torch.arange(world.batch)
    policy = [(Teacher("policy", world.sampler.guidance), everyone)]
    anchors = [(world.anchor, everyone)] if world.anchor else []
    roles = {"student": policy, "forward": policy, "teacher": world.labelers, "anchor": anchors}
    return {name: _passes(world, name, teachers) for name, teachers in roles.items() if teachers}


def fused(world: World) -> Action:
    """Each step is labelled and learned as the rollout reaches it."""
    model, batch, iterations = world.model, world.batch, count()
    objective = objectives.opd(model, world.sampler, world.settings)
    together = max(batch, world.recipe.train.rollout_batch)

    def run() -> None:
        sampler = iteration_sampler(model, world.recipe, next(iterations))
        steps = micro_batches(FusedStep(model, sampler, world.routes, world.anchor, batch, together), world.draw)
        with model.adapters.use("policy"), suppress(StopIteration):
            micro = next(steps)
            while True:
                loss = objective(micro)
                loss.total.backward()
                micro = steps.send(loss)
        _update(world)

    return run


def replay(world: World) -> Action:
    """The whole trajectory first, then its labels, then the policy's passes with gradients over it."""
    model, batch, iterations = world.model, world.batch, count()
    objective = objectives.opd(model, world.sampler, world.settings)

    def run() -> None:
        sampler = iteration_sampler(model, world.recipe, next(iterations))
        rolled = collect.rollout(model, sampler, world.draw, batch=batch)
        rolled = labels.with_labels(model, sampler, rolled, world.routes, world.anchor, batch=batch)
        _learn(world, model, objective, rolled, sampler)

    return run


def upstream(world: World) -> Action:
    """The passes of the released Flow-OPD loop: rollout, teacher, anchor and student at every step, each in batches of
    its own, with both halves of classifier-free guidance in them whatever its scale. The result is that of
    :func:`replay`.
    """
    model, batch, sampler = _with_both_halves(world.model), world.batch, world.sampler
    wide = {None: model, **{base: _with_both_halves(base) for base in world.bases.values()}}
    objective = objectives.opd(model, sampler, world.settings)
    everyone = torch.arange(batch)
    targets = [dict(world.routes[prompt.task].target(prompt)) for prompt in world.draw.prompts]
    weights = {t: torch.tensor([target.get(t, 0.0) for target in targets]) for target in targets for t in target}

    def run() -> None:
        rolled = collect.rollout(model, sampler, world.draw, batch=batch)
        parts = [
            weight.to(model.device).view(-1, 1, 1, 1, 1) * _labels(world, wide, rolled, t, weight.nonzero()[:, 0])
            for t, weight in weights.items()
        ]
        rolled = replace(rolled, target_velocity=torch.stack(parts).sum(dim=0))
        if world.anchor is not None:
            rolled = replace(rolled, anchor_velocity=_labels(world, wide, rolled, world.anchor, everyone))
        _learn(world, model, objective, rolled, sampler)

    return run


@torch.no_grad()
def _labels(
    world: World,
    models: Mapping[FlowModel | None, FlowModel],
    rolled: Rollout,
    teacher: Teacher,
    rows: Int[Tensor, " b"],
) -> Float[Tensor, "B T C H W"]:
    """One teacher's velocities at its rows of the trajectory, 0 elsewhere."""
    model = models[teacher.model]
    cond = rolled.cond if teacher.model is None else model.encode([prompt.text for prompt in rolled.prompts])
    latents, sigmas = rolled.trajectory.latents, rolled.trajectory.sigmas.float().to(world.model.device)
    out = torch.zeros_like(latents[:, :-1])
    pairs = torch.cartesian_prod(rows, torch.tensor(trained_steps(world.sampler).steps))
    with model.adapters.use(teacher.adapter):
        for b, t in (part.unbind(1) for part in pairs.split(world.batch)):
            out[b, t] = model.velocity(latents[b, t], sigmas[t], cond[b], guidance=teacher.guidance)
    return out


def _learn(world: World, model: FlowModel, objective: objectives.Objective, rolled: Rollout, sampler: Sampler) -> None:
    """The policy's passes with gradients over a labelled rollout, and the optimizer step."""
    with model.adapters.use("policy"):
        for micro_batches in collect.step_batches(rolled, sampler, updates=1, micro=world.batch, seed=0):
            for micro in micro_batches:
                objective(micro).total.backward()
    _update(world)


def _with_both_halves(model: PipelineModel) -> PipelineModel:
    """The model, computing the empty prompt's half also at guidance 1, if its guidance is classifier-free."""
    if not model.classifier_free:
        return model

    def velocity(
        latents: Tensor, sigma: Tensor, cond: Conditioning, *, guidance: float, adapters: None = None
    ) -> Tensor:
        negative, positive = model.velocity(*two_halves(latents, sigma, cond), guidance=1.0).chunk(2)
        return negative + guidance * (positive - negative)

    wide = copy.copy(model)
    setattr(wide, "velocity", velocity)  # noqa: B010
    return wide


def two_halves(latents: Tensor, sigma: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor, Conditioning]:
    """Rows of the empty prompt, then those of the prompts.

    Raises :class:`ValueError`: the conditioning has no rows of the empty prompt.
    """
    both = Conditioning.cat([cond.negative, cond.positive])
    return torch.cat([latents, latents]), torch.cat([sigma, sigma]), both


def forward(
    model: FlowModel, latents: Tensor, sigma: Tensor, cond: Conditioning, guidance: float
) -> Callable[[], Tensor]:
    """The transformer over these rows, or over both halves of them with classifier-free guidance."""
    if model.classifier_free and guidance != 1:
        return partial(model.velocity, *two_halves(latents, sigma, cond), guidance=1.0)
    return partial(model.velocity, latents, sigma, cond, guidance=guidance)


def _update(world: World) -> None:
    """One optimizer step, clipped as the loop clips."""
    parameters = world.model.adapters.trainable().values()
    torch.nn.utils.clip_grad_norm_(parameters, world.recipe.train.max_grad_norm)
    world.optimizer.step()
    world.optimizer.zero_grad(set_to_none=True)


def _passes(world: World, name: str, roles: Sequence[tuple[Teacher, Int[Tensor, " n"]]]) -> Action:
    forwards: list[tuple[FlowModel, str | None, Callable[[], Tensor]]] = []
    for role, rows in roles:
        model = role.model or world.model
        latents, sigma, cond = world.noise(model)
        for part in rows.split(world.batch):
            once = forward(model, latents[part], sigma[part], cond[part], role.guidance)
            forwards.append((model, role.adapter, once))

    def run() -> None:
        for model, adapter, once in forwards:
            with model.adapters.use(adapter), torch.set_grad_enabled(name == "student"):
                for _ in range(world.steps):
                    velocity = once()
                    if name == "student":
                        velocity.square().mean().backward()
        world.optimizer.zero_grad(set_to_none=True)

    return run
