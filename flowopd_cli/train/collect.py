"""Experience: rollout, then labels (rewards, advantages, target and anchor velocities). No gradients here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.advantages import flat_groups, group_advantages, zero_variance_fraction
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.routing import check_routes
from flowopd_cli.core.sampler import Lessons, Sampler, SeededNoise
from flowopd_cli.core.types import Conditioning, RewardResult, Rollout, StepBatch, Trajectory
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.labels import Teacher, parcels, row_cost, velocity_of
from flowopd_cli.train.partition import Share, dealt

Scorer = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], RewardResult]


@dataclass(frozen=True)
class Draw:
    """What one iteration draws: B prompts with the group and the noise seed of each.

    Of a draw that several processes share this is one process's part, and ``share`` says which.
    """

    prompts: tuple[Prompt, ...]
    group: Int[Tensor, " B"]
    seeds: tuple[int, ...]
    share: Share | None = None


@torch.no_grad()
def rollout(
    model: FlowModel,
    sampler: Sampler,
    draw: Draw,
    *,
    adapter: str | None = "policy",
    batch: int = 32,
    last: bool = False,
) -> Rollout:
    """Sample one trajectory a prompt under ``adapter``, ``batch`` rows at a time; ``last`` keeps only final latents."""
    cond = encoded(model, draw.prompts)
    with model.adapters.use(adapter):
        parts = [part for _, part in trajectories(model, sampler, draw, cond, batch=batch, last=last)]
    return Rollout(draw.prompts, draw.group, cond, join(parts))


def encoded(model: FlowModel, prompts: Sequence[Prompt]) -> Conditioning:
    """A row a prompt; no row for no prompt."""
    return model.encode([prompt.text for prompt in prompts] or [""])[: len(prompts)]


def trajectories(
    model: FlowModel, sampler: Sampler, draw: Draw, cond: Conditioning, *, batch: int = 32, last: bool = False
) -> Iterator[tuple[slice, Trajectory]]:
    """The trajectories of :func:`rollout` as they are drawn, under the adapter in use: ``batch`` rows and which they
    are. A process that has no prompt, where there are fewer groups than processes, gets one of no row.
    """
    if not draw.prompts:
        yield slice(0), _nothing(model, sampler, cond, last)
    for start in range(0, len(draw.prompts), batch):
        rows = slice(start, start + batch)
        noise = SeededNoise(draw.seeds[rows], model.latent_shape)
        initial = noise.initial().to(cond.embeds.device)
        keep = "last" if last else "all"
        yield rows, sampler.rollout(model.velocity, initial, cond[rows], noise, keep=keep)


def _nothing(model: FlowModel, sampler: Sampler, cond: Conditioning, last: bool) -> Trajectory:
    sigmas, stochastic = (sampler.sigmas[-1:], sampler.stochastic[:0]) if last else (sampler.sigmas, sampler.stochastic)
    place = cond.embeds.device
    log_probs = torch.zeros(0, len(stochastic), device=place) if bool(stochastic.any()) else None
    return Trajectory(torch.zeros(0, len(sigmas), *model.latent_shape, device=place), sigmas, log_probs, stochastic)


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of the same grid, stacked along the batch."""
    first = parts[0]
    log_probs = None
    if first.log_probs is not None:
        log_probs = torch.cat([part.log_probs for part in parts if part.log_probs is not None])
    return Trajectory(torch.cat([p.latents for p in parts]), first.sigmas, log_probs, first.stochastic)


@torch.no_grad()
def with_images(model: FlowModel, rolled: Rollout, *, batch: int = 32) -> Rollout:
    """Decode the final latents."""
    final = rolled.trajectory.final
    images = [model.decode(final[i : i + batch]) for i in range(0, len(final), batch)]
    return replace(rolled, images=torch.cat(images) if images else torch.zeros(0, 3, 1, 1))


def with_rewards(rolled: Rollout, score: Scorer) -> Rollout:
    """Score the pictures, which :func:`with_images` has made."""
    if rolled.images is None:
        raise ValueError("rewards need images: decode the rollout first")
    return replace(rolled, rewards=score(rolled.images, rolled.prompts))


@dataclass(frozen=True)
class Scores:
    """What all A pictures of a draw scored, those of other processes among them, and the group of each."""

    result: RewardResult
    group: Int[Tensor, " A"]

    @property
    def flat(self) -> list[int]:
        """The groups without spread, which teach nothing."""
        return flat_groups(self.result.total, self.group, self.result.valid)


def scores_of_all(rolled: Rollout, share: Share | None = None) -> Scores:
    """The scores of the whole draw. With a ``share`` every process has to ask, and none goes on before all did.

    Raises:
        ValueError: nobody has scored the rollout.
    """
    if rolled.rewards is None:
        raise ValueError("advantages need rewards")
    return Scores(*((rolled.rewards, rolled.group) if share is None else share.whole(rolled.rewards, rolled.group)))


def with_advantages(
    rolled: Rollout, *, std: str, clip: float, share: Share | None = None, scores: Scores | None = None
) -> Rollout:
    """Group-relative advantages ``(B,)`` of the total reward; invalid scores get 0 and leave their group alone.

    With a ``share`` the statistics are those of the whole draw: of ``scores``, where they have been gathered already.
    """
    scores = scores or scores_of_all(rolled, share)
    result = scores.result
    advantages = group_advantages(result.total, scores.group, result.valid, std=std, clip=clip)
    own = advantages if share is None else advantages[share.rows]
    return replace(rolled, advantages=own.to(rolled.trajectory.latents.device))


def trained_steps(sampler: Sampler) -> list[int]:
    """The steps that teach: the sampler's lessons, else the stochastic steps; every step but the last near no-op of an
    ODE sampler."""
    if sampler.lessons is not None:
        return list(sampler.lessons.steps)
    stochastic = sampler.stochastic.nonzero().flatten().tolist()
    return stochastic or list(range(max(1, len(sampler.sigmas) - 2)))


def lessons_of(sampler: Sampler) -> Lessons:
    """The sampler's lessons; without any, every trained step with the whole anchor."""
    steps = trained_steps(sampler)
    return sampler.lessons or Lessons(tuple(steps), (1.0,) * len(steps))


@torch.no_grad()
def with_targets(
    model: FlowModel, sampler: Sampler, rolled: Rollout, teachers: Mapping[str, Teacher], *, batch: int = 32
) -> Rollout:
    """Each prompt's teacher's velocity ``(B, T, C, H, W)`` at the policy's own latents, ``batch`` rows a forward.

    Raises:
        RoutingError: a prompt's task has no teacher.
    """
    check_routes([prompt.task for prompt in rolled.prompts], tuple(teachers))
    who = [teachers[prompt.task] for prompt in rolled.prompts]
    return replace(rolled, target_velocity=_labelled(model, rolled, who, trained_steps(sampler), batch))


@torch.no_grad()
def with_anchor(model: FlowModel, sampler: Sampler, rolled: Rollout, anchor: Teacher, *, batch: int = 32) -> Rollout:
    """The anchor's velocity ``(B, T, C, H, W)`` at every prompt's latents (MAR; for GRPO the base, as KL reference).

    Where the sampler's lessons leave it out there is none, and ``anchor_weight (T,)`` says what the others count for.
    """
    lessons = lessons_of(sampler)
    if set(lessons.anchor) != {1.0}:
        weight = torch.zeros(len(sampler.sigmas) - 1)
        weight[list(lessons.steps)] = torch.tensor(lessons.anchor)
        rolled = replace(rolled, anchor_weight=weight.to(rolled.trajectory.latents.device))
    steps = [step for step, weight in zip(lessons.steps, lessons.anchor, strict=True) if weight]
    if not steps:
        return rolled
    who = [anchor] * len(rolled.prompts)
    return replace(rolled, anchor_velocity=_labelled(model, rolled, who, steps, batch))


def _labelled(
    model: FlowModel, rolled: Rollout, teachers: Sequence[Teacher], steps: Sequence[int], batch: int
) -> Float[Tensor, "B T C H W"]:
    """Each row's velocity by its own of ``teachers`` at the given steps, 0 at the others."""
    latents = rolled.trajectory.latents
    out, sigmas = torch.zeros_like(latents[:, :-1]), rolled.trajectory.sigmas.float().to(latents.device)
    pairs = torch.cartesian_prod(torch.arange(len(teachers)), torch.tensor(list(steps)))
    who = [teachers[row] for row in pairs[:, 0].tolist()]
    for part in parcels(who, row_cost(model, latents, rolled.cond), batch, classifier_free=model.classifier_free):
        b, t = pairs[part, 0], pairs[part, 1]
        asked = [who[i] for i in part.tolist()]
        out[b, t] = velocity_of(model, asked, latents[b, t].float(), sigmas[t], rolled.cond[b]).to(out.dtype)
    return out


def step_batches(
    rolled: Rollout, sampler: Sampler, *, updates: int, micro: int, seed: int, share: Share | None = None
) -> Iterator[list[StepBatch]]:
    """Yield ``updates`` optimizer steps, each a list of micro-batches of at most ``micro`` (sample, step) rows.

    Samples are dealt to the optimizer steps by a permutation that depends on ``seed`` alone; a sample brings all its
    trained steps with it. With a ``share`` the permutation is of the whole draw and each process takes its own rows of
    every step; that may be none, but the number of steps is the same for all.
    """
    total = len(rolled.prompts) if share is None else share.total
    steps = torch.tensor(trained_steps(sampler))
    for samples in dealt(total, updates, seed):
        own = samples if share is None else share.mine(samples)
        pairs = torch.cartesian_prod(steps, own).flip(1)
        yield [rows_of(rolled, chunk[:, 0], chunk[:, 1]) for chunk in pairs.split(micro) if len(chunk)]


def rows_of(rolled: Rollout, b: Int[Tensor, " b"], t: Int[Tensor, " b"]) -> StepBatch:
    """The (sample, step) pairs ``(b, t)`` of a rollout as one batch."""
    trajectory = rolled.trajectory
    device = trajectory.latents.device
    sigmas = trajectory.sigmas.float().to(device)

    def at(field: Float[Tensor, "B T ..."] | None) -> Tensor | None:
        return None if field is None else field[b, t].float()

    return StepBatch(
        latents=trajectory.latents[b, t].float(),
        next_latents=trajectory.latents[b, t + 1].float(),
        sigma=sigmas[t],
        sigma_next=sigmas[t + 1],
        cond=rolled.cond[b],
        target_velocity=at(rolled.target_velocity),
        anchor_velocity=at(rolled.anchor_velocity),
        old_log_prob=at(trajectory.log_probs),
        advantage=None if rolled.advantages is None else rolled.advantages[b],
        anchor_weight=None if rolled.anchor_weight is None else rolled.anchor_weight[t],
        prompts=tuple(rolled.prompts[row] for row in b.tolist()),
    )


def reward_figures(rolled: Rollout, share: Share | None = None) -> dict[str, float]:
    """:func:`figures` of a rollout; with a ``share`` those of the whole draw. None without rewards."""
    return {} if rolled.rewards is None else figures(scores_of_all(rolled, share))


def figures(scores: Scores) -> dict[str, float]:
    """Means of the valid scores, the share of invalid ones and of groups without spread, for the metrics file."""
    result = scores.result
    known = result.total[result.valid]
    row = {"reward": float(known.mean()), "reward_std": float((known - known.mean()).square().mean().sqrt())}
    row |= {f"reward/{name}": float(column.nanmean()) for name, column in result.scores.items()}
    row["invalid"] = float((~result.valid).float().mean())
    row["flat_groups"] = zero_variance_fraction(result.total, scores.group, result.valid)
    return row
