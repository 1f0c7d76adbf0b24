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
from flowopd_cli.core.types import Conditioning, Rollout, StepBatch, Trajectory
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.collect import Draw, Scorer, rollout, with_images, with_rewards
from flowopd_cli.train.partition import Partition
from flowopd_cli.train.routes import Teacher


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
    """Draw each task's prompts with its teacher; keep the best picture of every group (the first without ``score``).

    Groups without a valid score are left out. If processes share the draw, each gets the whole result.
    """
    parts: list[Rollout] = []
    for task, rows in route(draw.prompts, tuple(teachers)).items():
        teacher, indices = teachers[task], rows.tolist()
        part = Draw(tuple(draw.prompts[i] for i in indices), draw.group[rows], tuple(draw.seeds[i] for i in indices))
        guided = replace(sampler, guidance=teacher.guidance)
        rolled = rollout(model, guided, part, adapter=teacher.adapter, batch=batch, keep="last")
        if score is not None:
            rolled = with_rewards(with_images(model, rolled, batch=batch), score)
        parts.append(_best_rows(rolled))
    if not parts:
        parts = [rollout(model, sampler, draw, batch=batch, keep="last")]
    local = Rollout(
        tuple(prompt for part in parts for prompt in part.prompts),
        torch.cat([part.group for part in parts]),
        Conditioning.cat([part.cond for part in parts]),
        Trajectory.cat([part.trajectory for part in parts]),
    )
    return local if draw.partition is None else _of_all(model, local, draw, draw.partition)


def _of_all(model: FlowModel, local: Rollout, draw: Draw, partition: Partition) -> Rollout:
    """The best pictures of all processes, in the order of a single process: by task, then by group."""
    first: dict[str, int] = {}
    for place, prompt in zip(partition.rows.tolist(), draw.prompts, strict=True):
        first.setdefault(prompt.task, place)
    latents = local.trajectory.latents
    parts = partition.gather((first, local.prompts, local.group, latents.cpu()))
    start = {task: min(part[0].get(task, partition.total) for part in parts) for part in parts for task in part[0]}
    prompts, group = [prompt for part in parts for prompt in part[1]], torch.cat([part[2] for part in parts])
    order = sorted(range(len(prompts)), key=lambda i: (start[prompts[i].task], int(group[i])))
    if not order:
        return local
    pictures = torch.cat([part[3] for part in parts])[order].to(latents.device)
    best = tuple(prompts[i] for i in order)
    trajectory = replace(local.trajectory, latents=pictures)
    return Rollout(best, group[order], model.encode([prompt.text for prompt in best]), trajectory)


def _best_rows(rolled: Rollout) -> Rollout:
    value = torch.zeros(len(rolled.prompts))
    if rolled.rewards is not None:
        value = torch.where(rolled.rewards.valid, rolled.rewards.total, -torch.inf)
    best = [
        rows[value[rows].argmax()] for g in rolled.group.unique() if len(rows := (rolled.group == g).nonzero()[:, 0])
    ]
    rows = torch.tensor([int(row) for row in best if value[row] > -torch.inf], dtype=torch.long)
    return replace(rolled, images=None, rewards=None)[rows]


@dataclass(frozen=True)
class Pictures:
    """The training set of a cold start: ``N`` latents, and the prompt of each."""

    latents: Float[Tensor, "N C H W"]
    cond: Conditioning
    prompts: tuple[Prompt, ...]

    @staticmethod
    def of(rollouts: Sequence[Rollout]) -> Pictures:
        """The last latents of several rollouts, one after the other."""
        latents = torch.cat([r.trajectory.final for r in rollouts])
        cond = Conditioning.cat([r.cond for r in rollouts])
        return Pictures(latents, cond, tuple(prompt for r in rollouts for prompt in r.prompts))


def sft_rows(data: Pictures, batch: int, *, seed: int, mean: float, std: float) -> StepBatch:
    """``batch`` flow-matching rows at logit-normal sigmas; everything drawn from ``seed``."""
    latents = data.latents
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(latents), (batch,), generator=generator)
    sigma = torch.sigmoid(mean + std * torch.randn(batch, generator=generator)).to(latents.device)
    noise = torch.randn(batch, *latents.shape[1:], generator=generator).to(latents.device)
    batch_rows = noised(latents[rows].float(), data.cond[rows], sigma, noise)
    return replace(batch_rows, prompts=tuple(data.prompts[row] for row in rows.tolist()))
