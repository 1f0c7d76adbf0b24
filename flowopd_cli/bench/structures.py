"""One distilled iteration in every structure that is compared, and the passes of which the floor is made.

Each is a call without arguments that makes the gradients of one optimizer step over the same rows, and the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.bench.world import World
from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.base import Adapters, FlowModel
from flowopd_cli.models.sd3 import TRAIN_TIMESTEPS, SD3Model
from flowopd_cli.train import collect, objectives

Action = Callable[[], None]


def floor(world: World) -> dict[str, Action]:
    """The passes that no structure does without, each role's alone, as often as an iteration has trained steps."""
    roles = {"student": ("policy", world.sampler.guidance), "teacher": _dearest(world)}
    if world.anchor is not None:
        roles["anchor"] = (str(world.anchor.adapter), world.anchor.guidance)
    return {role: _passes(world, role, *rest) for role, rest in roles.items()}


def replay(world: World, model: FlowModel | None = None) -> Action:
    """The whole trajectory first, then its labels, then the policy's passes with gradients over it."""
    made = model or world.model
    objective = objectives.opd(made, world.sampler, world.settings)
    batch = world.batch

    def run() -> None:
        rolled = collect.rollout(made, world.sampler, world.draw, batch=batch)
        rolled = collect.with_targets(made, world.sampler, rolled, world.teachers, batch=batch)
        if world.anchor is not None:
            rolled = collect.with_anchor(made, world.sampler, rolled, world.anchor, batch=batch)
        for micro_batches in collect.step_batches(rolled, world.sampler, updates=1, micro=batch, seed=0):
            with made.adapters.use("policy"):
                for micro in micro_batches:
                    objective(micro).total.backward()
        update(world)

    return run


def fused(world: World) -> Action:
    """Student, teachers and anchor at each step as the trajectory goes."""
    return replay(world)


def upstream(world: World) -> Action:
    """The passes of the released Flow-OPD loop: rollout, student, teacher and anchor, each in batches of its own with
    both halves of guidance in them, whatever the guidance. The mathematics is that of :func:`replay`.
    """
    return replay(world, BothHalves(world.model))


class BothHalves:
    """A model that computes the empty prompt's half also where guidance is 1 and nothing comes of it."""

    def __init__(self, model: SD3Model) -> None:
        self.model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    @property
    def adapters(self) -> Adapters:
        """The model's."""
        return self.model.adapters

    def velocity(
        self, latents: Float[Tensor, "b C H W"], sigma: Float[Tensor, " b"], cond: Conditioning, *, guidance: float
    ) -> Float[Tensor, "b C H W"]:
        """``v_neg + guidance (v_pos - v_neg)``, always in one batch of 2b rows."""
        negative, positive = forward(self.model, *two_halves(latents, sigma, cond)).chunk(2)
        return negative + guidance * (positive - negative)


def two_halves(latents: Tensor, sigma: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of the empty prompt, then those of the prompts: what :func:`forward` takes.

    Raises:
        ValueError: the conditioning has no rows of the empty prompt.
    """
    if cond.neg_embeds is None or cond.neg_pooled is None or cond.pooled is None:
        raise ValueError("guidance needs the empty prompt's rows in the conditioning")
    embeds, pooled = torch.cat([cond.neg_embeds, cond.embeds]), torch.cat([cond.neg_pooled, cond.pooled])
    return torch.cat([latents, latents]), torch.cat([sigma, sigma]), embeds, pooled


def forward(model: SD3Model, latents: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor | None) -> Tensor:
    """The transformer and nothing else, ``(b, C, H, W)`` in float32."""
    return model.transformer(
        hidden_states=latents.to(model.dtype),
        timestep=sigma * TRAIN_TIMESTEPS,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
    )[0].float()


def update(world: World) -> None:
    """One optimizer step, clipped as the loop clips."""
    parameters = world.model.adapters.trainable().values()
    torch.nn.utils.clip_grad_norm_(parameters, world.recipe.train.max_grad_norm)
    world.optimizer.step()
    world.optimizer.zero_grad(set_to_none=True)


def _dearest(world: World) -> tuple[str, float]:
    """A teacher, one with guidance where there is one."""
    found = max(world.teachers.values(), key=lambda teacher: teacher.guidance != 1)
    return str(found.adapter), found.guidance


def _passes(world: World, role: str, adapter: str, guidance: float) -> Action:
    latents, sigma, cond = world.noise()
    halves = guidance != 1
    given = two_halves(latents, sigma, cond) if halves else (latents, sigma, cond.embeds, cond.pooled)

    def run() -> None:
        with world.model.adapters.use(adapter), torch.set_grad_enabled(role == "student"):
            for _ in range(world.steps):
                velocity = forward(world.model, *given)
                if role == "student":
                    velocity.square().mean().backward()
        world.optimizer.zero_grad(set_to_none=True)

    return run
