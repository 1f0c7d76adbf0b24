"""Experience: rollout, then labels (rewards, advantages, target and anchor velocities). No gradients here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.advantages import flat_groups, group_advantages, summed_advantages
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Keep, Sampler, SeededNoise, TrainedSteps, trained_steps
from flowopd_cli.core.types import Conditioning, RewardResult, Rollout, StepBatch, Trajectory
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.labels import with_labels
from flowopd_cli.train.partition import Partition
from flowopd_cli.train.routes import Teacher

Scorer = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], RewardResult]


@dataclass(frozen=True)
class Draw:
    """The draw of one iteration: B prompts with the group and the noise seed of each.

    With a ``partition`` these are the rows of one of several processes.
    """

    prompts: tuple[Prompt, ...]
    group: Int[Tensor, " B"]
    seeds: tuple[int, ...]
    partition: Partition | None = None


@torch.no_grad()
def rollout(
    model: FlowModel,
    sampler: Sampler,
    draw: Draw,
    *,
    adapter: str | None = "policy",
    batch: int = 32,
    keep: Keep = "all",
) -> Rollout:
    """Sample one trajectory a prompt under ``adapter``, ``batch`` rows at a time."""
    cond = encoded(model, draw.prompts)
    with model.adapters.use(adapter):
        parts = [part for _, part in trajectories(model, sampler, draw, cond, batch=batch, keep=keep)]
    return Rollout(draw.prompts, draw.group, cond, Trajectory.cat(parts))


def encoded(model: FlowModel, prompts: Sequence[Prompt]) -> Conditioning:
    """One row per prompt; works without prompts."""
    return model.encode([prompt.text for prompt in prompts] or [""])[: len(prompts)]


def trajectories(
    model: FlowModel, sampler: Sampler, draw: Draw, cond: Conditioning, *, batch: int = 32, keep: Keep = "all"
) -> Iterator[tuple[slice, Trajectory]]:
    """Trajectories of ``batch`` rows at a time, with the slice of their rows, under the adapter in use.

    A process without prompts (fewer groups than processes) gets one trajectory without rows.
    """
    if not draw.prompts:
        yield slice(0), _empty_trajectory(model, sampler, cond, keep)
    for start in range(0, len(draw.prompts), batch):
        rows = slice(start, start + batch)
        noise = SeededNoise(draw.seeds[rows], model.latent_shape)
        initial = noise.initial().to(cond.embeds.device)
        yield rows, sampler.rollout(model.velocity, initial, cond[rows], noise, keep=keep)


def _empty_trajectory(model: FlowModel, sampler: Sampler, cond: Conditioning, keep: Keep) -> Trajectory:
    sigmas, stochastic = sampler.sigmas, sampler.stochastic
    if keep == "last":
        sigmas, stochastic = sigmas[-1:], stochastic[:0]
    latents = torch.zeros(0, len(sigmas), *model.latent_shape, device=cond.embeds.device)
    log_probs = latents.new_zeros(0, len(stochastic)) if bool(stochastic.any()) else None
    return Trajectory(latents, sigmas, log_probs, stochastic, latents[:, 1:] if keep == "velocities" else None)


@torch.no_grad()
def with_images(model: FlowModel, rolled: Rollout, *, batch: int = 32) -> Rollout:
    """Decode the final latents."""
    final = rolled.trajectory.final
    images = [model.decode(final[i : i + batch]) for i in range(0, len(final), batch)]
    return replace(rolled, images=torch.cat(images) if images else torch.zeros(0, 3, 1, 1))


def with_rewards(rolled: Rollout, score: Scorer) -> Rollout:
    """Score the pictures that :func:`with_images` decoded."""
    if rolled.images is None:
        raise ValueError("rewards need images: decode the rollout first")
    return replace(rolled, rewards=score(rolled.images, rolled.prompts))


class Scoring(Protocol):
    """Scores the pictures of one rollout, batch by batch in order, perhaps in the background."""

    def submit(self, item: tuple[Float[Tensor, "b 3 H W"], Sequence[Prompt]], /) -> None:
        """Queue a batch; the error of an earlier one may be raised here."""
        ...

    def results(self) -> list[RewardResult]:
        """The scores of all batches."""
        ...


@dataclass(frozen=True)
class Grader:
    """Draws rollouts of an adapter with their rewards, and with the velocities of a ``reference`` if there is one.

    A batch is scored while the next one is drawn and while the reference answers; ``scoring`` begins the scores of one
    rollout. Rewards score each picture by itself, so batches change nothing. Pictures are not stored; latents and the
    policy's velocities are as ``keep`` says.
    """

    model: FlowModel
    scoring: Callable[[], Scoring]
    batch: int = 32
    reference: Teacher | None = None
    adapter: str = "policy"
    keep: Keep = "all"

    @torch.no_grad()
    def __call__(self, sampler: Sampler, draw: Draw) -> Rollout:
        """The rollout of a draw with rewards ``(B,)``, and ``anchor_velocity`` if there is a reference."""
        scoring, parts = self.scoring(), []
        cond = encoded(self.model, draw.prompts)
        with self.model.adapters.use(self.adapter):
            for rows, part in trajectories(self.model, sampler, draw, cond, batch=self.batch, keep=self.keep):
                parts.append(part)
                if len(part.latents):
                    scoring.submit((self.model.decode(part.final), draw.prompts[rows]))
        rolled = Rollout(draw.prompts, draw.group, cond, Trajectory.cat(parts))
        if self.reference is not None:
            rolled = with_labels(self.model, sampler, rolled, None, self.reference, batch=self.batch)
        return replace(rolled, rewards=RewardResult.cat(scoring.results()))


@dataclass(frozen=True)
class Scores:
    """Scores, groups and tasks of all A pictures of a draw, those of other processes included.

    With ``weights``, by name, each of these rewards is normalized alone, otherwise the total.
    """

    result: RewardResult
    group: Int[Tensor, " A"]
    tasks: tuple[str, ...]
    weights: Mapping[str, float] | None = None

    @property
    def flat(self) -> list[int]:
        """The groups without spread, whose advantages are all 0."""
        if self.weights is None:
            return flat_groups(self.result.total, self.group, self.result.valid)
        flat = [set(flat_groups(column, self.group, column.isfinite())) for column in self._columns()]
        return sorted(set.intersection(*flat))

    def advantages(self, std: Literal["group", "global"]) -> Float[Tensor, " A"]:
        """Group-relative advantages; a global deviation is that of the pictures of the same task."""
        names = list(dict.fromkeys(self.tasks))
        task = torch.tensor([names.index(name) for name in self.tasks], dtype=torch.long)
        if self.weights is None:
            return group_advantages(self.result.total, self.group, self.result.valid, task=task, std=std)
        return summed_advantages(self._columns(), list(self.weights.values()), self.group, task=task, std=std)

    def _columns(self) -> list[Float[Tensor, " A"]]:
        unknown = torch.full_like(self.result.total, torch.nan)
        return [self.result.scores.get(name, unknown) for name in self.weights or ()]


def scores_of_all(
    rolled: Rollout, partition: Partition | None = None, weights: Mapping[str, float] | None = None
) -> Scores:
    """The scores of the whole draw; with a ``partition`` a collective call of all processes."""
    if rolled.rewards is None:
        raise ValueError("advantages need rewards")
    tasks = tuple(prompt.task for prompt in rolled.prompts)
    if partition is None:
        return Scores(rolled.rewards, rolled.group, tasks, weights)
    return Scores(*partition.gather_scores(rolled.rewards, rolled.group, tasks), weights)


def with_advantages(
    rolled: Rollout,
    *,
    std: Literal["group", "global"],
    clip: float,
    partition: Partition | None = None,
    scores: Scores | None = None,
) -> Rollout:
    """:meth:`Scores.advantages` ``(B,)`` of the rollout, clipped; invalid scores get 0 and enter no statistic.

    The statistics are those of the whole draw; ``scores`` are its scores, if already gathered.
    """
    advantages = (scores or scores_of_all(rolled, partition)).advantages(std).clamp(-clip, clip)
    local = advantages if partition is None else advantages[partition.rows]
    return replace(rolled, advantages=local.to(rolled.trajectory.latents.device))


def step_batches(
    rolled: Rollout, sampler: Sampler, updates: int, micro: int, seed: int, partition: Partition | None = None
) -> Iterator[list[StepBatch]]:
    """Yield ``updates`` optimizer steps, each a list of micro-batches of at most ``micro`` (sample, step) rows.

    A sample brings all its trained steps. With a ``partition`` the whole draw is split and each process takes its own
    rows of every step, perhaps none; all make the same number of steps.
    """
    total = len(rolled.prompts) if partition is None else partition.total
    trained = trained_steps(sampler)
    for pairs in deal_pairs(total, torch.tensor(trained.steps), updates, seed, partition):
        yield [_weighted_rows(rolled, trained, chunk) for chunk in pairs.split(micro) if len(chunk)]


def _weighted_rows(rolled: Rollout, trained: TrainedSteps, pairs: Int[Tensor, "n 2"]) -> StepBatch:
    rows = rows_of(rolled, pairs[:, 0], pairs[:, 1])
    if trained.weight is None:
        return rows
    weights = dict(zip(trained.steps, trained.weight, strict=True))
    return replace(rows, weight=rows.sigma.new_tensor([weights[step] for step in pairs[:, 1].tolist()]))


def deal_pairs(
    total: int, steps: Int[Tensor, " t"], updates: int, seed: int, partition: Partition | None = None
) -> Iterator[Int[Tensor, "n 2"]]:
    """The (sample, step) pairs of each optimizer step that this process learns: a sample brings all its ``steps``."""
    for samples in deal_samples(total, updates, seed):
        local = samples if partition is None else partition.local_rows(samples)
        yield torch.cartesian_prod(steps, local).flip(1)


def deal_samples(total: int, updates: int, seed: int) -> tuple[Int[Tensor, " n"], ...]:
    """The samples of each of at most ``updates`` optimizer steps: a permutation that depends on ``seed`` alone."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)).chunk(updates)


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
        old_velocity=at(trajectory.velocities),
        old_log_prob=at(trajectory.log_probs),
        advantage=None if rolled.advantages is None else rolled.advantages[b],
        anchor_weight=None if rolled.anchor_weight is None else rolled.anchor_weight[t],
        prompts=tuple(rolled.prompts[row] for row in b.tolist()),
    )


def reward_figures(scores: Scores) -> dict[str, float]:
    """Means of the valid scores, the fractions of invalid scores and of flat groups, for the metrics file."""
    result, groups = scores.result, len(scores.group.unique())
    valid = result.total[result.valid].double()  # so that equal rewards have no deviation
    row = {"reward": float(valid.mean()), "reward_std": float((valid - valid.mean()).square().mean().sqrt())}
    row |= {f"reward/{name}": float(column.double().nanmean()) for name, column in result.scores.items()}
    row["invalid"] = float((~result.valid).float().mean())
    row["flat_groups"] = len(scores.flat) / groups if groups else float("nan")
    return row


def means_of_all(columns: Mapping[str, Float[Tensor, " B"]], partition: Partition | None = None) -> dict[str, float]:
    """The mean of each column over the whole draw without its NaNs; with a ``partition`` a collective call."""
    values = {name: column.double() for name, column in columns.items()}
    local = {name: (float(value.nansum()), int((~value.isnan()).sum())) for name, value in values.items()}
    parts = [local] if partition is None else partition.gather(local)
    sums: dict[str, tuple[float, int]] = {}
    for name, (total, count) in (item for part in parts for item in part.items()):
        before = sums.get(name, (0.0, 0))
        sums[name] = (before[0] + total, before[1] + count)
    return {name: total / count if count else float("nan") for name, (total, count) in sums.items()}
