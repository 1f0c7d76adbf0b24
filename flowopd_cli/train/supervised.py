"""Experience of the cold start: the best pictures that teachers draw, and flow-matching rows made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.routing import route
from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.types import Conditioning, Rollout, StepBatch
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.collect import Draw, Scorer, Teacher, join, rollout, with_images, with_rewards
from flowopd_cli.train.partition import Partition


def noised(
    latents: Float[Tensor, "B C H W"], cond: Conditioning, sigma: Float[Tensor, " B"], noise: Float[Tensor, "B C H W"]
) -> StepBatch:
    """Flow-matching rows: ``x_sigma = (1 - sigma) x0 + sigma eps`` with target ``eps - x0``."""
    level = sigma.view(-1, 1, 1, 1)
    mixed = (1 - level) * latents + level * noise
    return StepBatch(mixed, mixed, sigma, torch.zeros_like(sigma), cond, target_velocity=noise - latents)


@torch.no_grad()
def best_of_group(
    model: FlowModel,
    sampler: Sampler,
    draw: Draw,
    teachers: Mapping[str, Teacher],
    score: Scorer | None,
    *,
    batch: int = 32,
) -> Rollout:
    """Each task's teacher draws its prompts; of every group the picture that scores best (the first, unscored) stays.

    Groups whose every score is invalid are left out. Of a shared draw the result is everybody's.
    """
    kept: list[Rollout] = []
    for task, rows in route(draw.prompts, tuple(teachers)).items():
        teacher = teachers[task]
        chosen = rows.tolist()
        part = Draw(tuple(draw.prompts[i] for i in chosen), draw.group[rows], tuple(draw.seeds[i] for i in chosen))
        drawn = replace(sampler, guidance=teacher.guidance)
        rolled = rollout(model, drawn, part, adapter=teacher.adapter, batch=batch, last=True)
        if score is not None:
            rolled = with_rewards(with_images(model, rolled, batch=batch), score)
        kept.append(_best_rows(rolled))
    if not kept:
        kept = [rollout(model, sampler, draw, batch=batch, last=True)]
    prompts = tuple(prompt for part in kept for prompt in part.prompts)
    cond = Conditioning.cat([part.cond for part in kept])
    own = Rollout(prompts, torch.cat([k.group for k in kept]), cond, join([k.trajectory for k in kept]))
    return own if draw.partition is None else _of_all(model, own, draw, draw.partition)


def _of_all(model: FlowModel, own: Rollout, draw: Draw, partition: Partition) -> Rollout:
    """The kept pictures of all processes, in the order in which one alone would have them: by task, then by group."""
    first: dict[str, int] = {}
    for place, prompt in zip(partition.rows.tolist(), draw.prompts, strict=True):
        first.setdefault(prompt.task, place)
    latents = own.trajectory.latents
    parts = partition.gather((first, own.prompts, own.group, latents.cpu()))
    start = {task: min(part[0].get(task, partition.total) for part in parts) for part in parts for task in part[0]}
    prompts, group = [prompt for part in parts for prompt in part[1]], torch.cat([part[2] for part in parts])
    order = sorted(range(len(prompts)), key=lambda i: (start[prompts[i].task], int(group[i])))
    if not order:
        return own
    pictures = torch.cat([part[3] for part in parts])[order].to(latents.device)
    kept = tuple(prompts[i] for i in order)
    trajectory = replace(own.trajectory, latents=pictures)
    return Rollout(kept, group[order], model.encode([prompt.text for prompt in kept]), trajectory)


def _best_rows(rolled: Rollout) -> Rollout:
    value = torch.zeros(len(rolled.prompts))
    if rolled.rewards is not None:
        value = torch.where(rolled.rewards.valid, rolled.rewards.total, -torch.inf)
    best = [
        rows[value[rows].argmax()] for g in rolled.group.unique() if len(rows := (rolled.group == g).nonzero()[:, 0])
    ]
    rows = torch.tensor([int(row) for row in best if value[row] > -torch.inf], dtype=torch.long)
    trajectory = replace(rolled.trajectory, latents=rolled.trajectory.latents[rows], log_probs=None)
    prompts = tuple(rolled.prompts[i] for i in rows.tolist())
    return Rollout(prompts, rolled.group[rows], rolled.cond[rows], trajectory)


@dataclass(frozen=True)
class Pictures:
    """What a cold start learns: ``N`` latents, and the prompt of each."""

    latents: Float[Tensor, "N C H W"]
    cond: Conditioning
    prompts: tuple[Prompt, ...]

    @staticmethod
    def of(kept: Sequence[Rollout]) -> Pictures:
        """The last latents of several rollouts, one after the other."""
        latents, cond = torch.cat([k.trajectory.final for k in kept]), Conditioning.cat([k.cond for k in kept])
        return Pictures(latents, cond, tuple(prompt for k in kept for prompt in k.prompts))


def sft_rows(data: Pictures, batch: int, *, seed: int, mean: float, std: float) -> StepBatch:
    """``batch`` flow-matching rows at logit-normal sigmas; everything drawn from ``seed``."""
    latents = data.latents
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(latents), (batch,), generator=generator)
    sigma = torch.sigmoid(mean + std * torch.randn(batch, generator=generator)).to(latents.device)
    noise = torch.randn(batch, *latents.shape[1:], generator=generator).to(latents.device)
    drawn = noised(latents[rows].float(), data.cond[rows], sigma, noise)
    return replace(drawn, prompts=tuple(data.prompts[row] for row in rows.tolist()))
