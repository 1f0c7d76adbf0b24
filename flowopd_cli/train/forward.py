"""Forward-process experience: final latents, noised again at several levels, with the velocities of frozen adapters.

Shared by DiffusionNFT and AWM. It needs no log-probabilities, so any family and any solver will do.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.losses import matching_likelihood
from flowopd_cli.core.sampler import SeededNoise, seeded_generator
from flowopd_cli.core.types import Loss, Rollout, StepBatch
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.collect import deal_pairs
from flowopd_cli.train.labels import Rows, label
from flowopd_cli.train.partition import Partition
from flowopd_cli.train.routes import Teacher, sole
from flowopd_cli.train.supervised import noised

SLOW = "policy_slow"  # the adapter of the policy's slow copy


def slow_decay(steps: int, *, start: int, rate: float, most: float) -> float:
    """The share that the slow copy keeps of itself after ``steps`` optimizer steps (DiffusionNFT, AWM)."""
    return min(rate * max(0, steps - start), most)


def choose_levels(
    seeds: Sequence[int], sigmas: int, count: int, kind: Literal["permuted", "stratified"]
) -> Int[Tensor, "B count"]:
    """Indices of ``count`` noise levels for each picture among ``sigmas``, a function of the picture's seed alone.

    ``permuted`` draws without replacement; ``stratified`` one level from each of ``count`` equal parts of the grid
    without its first level.
    """
    rows = [torch.zeros(0, count, dtype=torch.long)]
    for seed in seeds:
        generator = seeded_generator(seed, "levels")
        if kind == "permuted":
            rows.append(torch.randperm(sigmas, generator=generator)[None, :count])
        else:
            place = (torch.arange(count) + torch.rand(count, generator=generator)) / count
            rows.append(1 + (place * (sigmas - 1)).long()[None])
    return torch.cat(rows)


@dataclass(frozen=True)
class ForwardRows:
    """The training rows of a rollout: picture b at its l-th of L noise levels, noised and labelled on demand.

    ``seeds`` determine the noise; ``guidance`` is that of all velocities. With ``slow`` each row gets the velocity of
    the slow copy, with ``base`` that of the base. Without ``slow`` the copy equals the policy, which answers anyway.
    """

    model: FlowModel
    rolled: Rollout
    seeds: tuple[int, ...]
    sigmas: Float[Tensor, " T"]
    levels: Int[Tensor, "B L"]
    guidance: float = 1.0
    slow: bool = True
    base: bool = True
    batch: int = 32
    likelihoods: Float[Tensor, "B L"] | None = None

    def __call__(self, b: Int[Tensor, " n"], level: Int[Tensor, " n"]) -> StepBatch:
        """The rows ``(b, level)`` with their labels."""
        rows = self._noised(b, level)
        states = Rows.of_states(rows.latents, rows.sigma, rows.cond)
        slow = [sole(Teacher(SLOW, self.guidance))] * len(rows) if self.slow else []
        target, base = label(
            self.model, states, slow, Teacher(None, self.guidance) if self.base else None, batch=self.batch
        )
        old = None if self.likelihoods is None else self.likelihoods[b, level].to(rows.sigma.device)
        return replace(rows, slow_velocity=target if slow else None, anchor_velocity=base, old_log_prob=old)

    @torch.no_grad()
    def with_likelihoods(self, power: float) -> ForwardRows:
        """The same rows with their likelihoods under the policy of now, for ratios after several optimizer steps."""
        pairs = torch.cartesian_prod(*(torch.arange(size) for size in self.levels.shape))
        likelihoods = torch.zeros(len(pairs))
        with self.model.adapters.use("policy"):
            for index in torch.arange(len(pairs)).split(self.batch):
                rows = self._noised(*pairs[index].unbind(1))
                velocity = self.model.velocity(rows.latents, rows.sigma, rows.cond, guidance=self.guidance)
                assert rows.target_velocity is not None
                likelihoods[index] = matching_likelihood(velocity, rows.target_velocity, rows.sigma, power).cpu()
        return replace(self, likelihoods=likelihoods.view(self.levels.shape))

    def optimizer_steps(
        self, updates: int, micro: int, seed: int, partition: Partition | None = None
    ) -> Iterator[Generator[StepBatch, Loss, None]]:
        """At most ``updates`` optimizer steps of micro-batches, dealt as by :func:`collect.step_batches`."""
        total = len(self.levels) if partition is None else partition.total
        for pairs in deal_pairs(total, torch.arange(self.levels.shape[1]), updates, seed, partition):
            yield self._micro_batches(pairs, micro)

    def _micro_batches(self, pairs: Int[Tensor, "n 2"], micro: int) -> Generator[StepBatch, Loss, None]:
        for chunk in pairs.split(micro) if len(pairs) else ():
            yield self(chunk[:, 0], chunk[:, 1])

    def _noised(self, b: Int[Tensor, " n"], level: Int[Tensor, " n"]) -> StepBatch:
        final, advantages = self.rolled.trajectory.final, self.rolled.advantages
        sigma = self.sigmas[self.levels[b, level]].to(final.device, torch.float32)
        shape, pairs = self.model.latent_shape, zip(b.tolist(), level.tolist(), strict=True)
        noise = torch.cat([SeededNoise((self.seeds[row],), shape).named(f"level {i}") for row, i in pairs])
        return replace(
            noised(final[b].float(), self.rolled.cond[b], sigma, noise.to(final.device)),
            advantage=None if advantages is None else advantages[b],
            prompts=tuple(self.rolled.prompts[row] for row in b.tolist()),
        )
