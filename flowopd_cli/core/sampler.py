"""The sampler that rollout, labelling and learning share, its seeded noise, and the steps it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowopd_cli.core.queries import Query, draw_systematic
from flowopd_cli.core.steps import ODE, Kernel, draw, log_prob
from flowopd_cli.core.types import Conditioning, GaussianStep, Trajectory

VelocityFn = Callable[..., Tensor]
Keep = Literal["all", "last", "velocities"]  # all states, the last, or all with the velocities there


@dataclass(frozen=True)
class SeededNoise:
    """Noise of each row, a function of its seed and the step only: batches and processes do not change it."""

    seeds: tuple[int, ...]
    shape: tuple[int, int, int]

    def initial(self) -> Float[Tensor, "B C H W"]:
        """The noise at sigma 1."""
        return self.named("initial")

    def at(self, step: int) -> Float[Tensor, "B C H W"]:
        """The noise that step ``step`` adds."""
        return self.named(str(step))

    def named(self, purpose: str) -> Float[Tensor, "B C H W"]:
        """The noise of another purpose."""
        return torch.stack([torch.randn(self.shape, generator=seeded_generator(seed, purpose)) for seed in self.seeds])


def seeded_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator whose state is a function of a seed and a purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class TrainedSteps:
    """The trained steps of an iteration, ascending, the anchor's weight at each (0: no anchor), and the loss's.

    Without ``weight`` that of every loss is 1.
    """

    steps: tuple[int, ...]
    anchor: tuple[float, ...]
    weight: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sampler:
    """A grid, a kernel and a guidance scale; ``window`` is the half-open range of stochastic steps, or all of them.

    ``trained`` are the steps chosen by :func:`choose_trained_steps`; labels are averages over ``substeps`` of each step
    (:func:`flowopd_cli.core.steps.average_velocity`). The last step is always an ODE step: on SD3.5's grid it covers
    sigma 0.009 to 0, where noise would stay visible, and upstream does not train it either.
    """

    sigmas: Float[Tensor, " T1"]
    kernel: Kernel
    guidance: float
    window: tuple[int, int] | None = None
    trained: TrainedSteps | None = None
    substeps: int = 1

    @property
    def stochastic(self) -> Bool[Tensor, " T"]:
        """Whether each step draws noise."""
        count = len(self.sigmas) - 1
        if isinstance(self.kernel, ODE):
            return torch.zeros(count, dtype=torch.bool)
        index, (start, stop) = torch.arange(count), self.window or (0, count)
        return (index >= start) & (index < stop) & (index < count - 1)

    def step(
        self,
        velocity: Float[Tensor, "b C H W"],
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        sigma_next: Float[Tensor, " b"],
    ) -> GaussianStep:
        """The kernel's step from a velocity to a distribution, shared by policy, teacher and anchor."""
        return self.kernel(velocity, latents, sigma, sigma_next)

    def levels(self, t: int, latents: Float[Tensor, "b C H W"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """``sigma`` and ``sigma_next`` of step ``t``, float32, one for each row of the latents."""
        sigmas = self.sigmas[t : t + 2].to(latents.device, torch.float32)
        return sigmas[0].expand(len(latents)), sigmas[1].expand(len(latents))

    def advance(
        self, velocity: Float[Tensor, "b C H W"], latents: Float[Tensor, "b C H W"], t: int, noise: SeededNoise
    ) -> tuple[Float[Tensor, "b C H W"], GaussianStep]:
        """The latents after step ``t``, with the rows' noise if it is stochastic; and the step itself."""
        noisy = bool(self.stochastic[t])
        step = (self.kernel if noisy else ODE())(velocity, latents, *self.levels(t, latents))
        return (draw(step, noise.at(t).to(latents.device)) if noisy else step.mean), step

    @torch.no_grad()
    def rollout(
        self,
        velocity: VelocityFn,
        latents: Float[Tensor, "B C H W"],
        cond: Conditioning,
        noise: SeededNoise,
        *,
        storage_dtype: torch.dtype = torch.float32,
        keep: Keep = "all",
    ) -> Trajectory:
        """Follow ``velocity(latents, sigma, cond, guidance=...)`` from noise to data.

        Each state is rounded to ``storage_dtype`` before its log-probability is taken, so that replaying the stored
        states gives exactly the probabilities of the rollout.
        """
        stochastic = self.stochastic
        states, log_probs, velocities = [latents.to(storage_dtype)], [], []
        for t, noisy in enumerate(stochastic.tolist()):
            x = states[-1].float()
            v = velocity(x, self.levels(t, x)[0], cond, guidance=self.guidance)
            velocities += [v] if keep == "velocities" else []
            next_latents, step = self.advance(v, x, t, noise)
            state = next_latents.to(storage_dtype)
            log_probs.append(log_prob(step, state.float()) if noisy else torch.zeros(len(x), device=x.device))
            states = [state] if keep == "last" else [*states, state]
        if keep == "last":
            return Trajectory(states[-1][:, None], self.sigmas[-1:], None, stochastic[:0])
        probabilities = torch.stack(log_probs, dim=1) if bool(stochastic.any()) else None
        policy = torch.stack(velocities, dim=1) if velocities else None
        return Trajectory(torch.stack(states, dim=1), self.sigmas, probabilities, stochastic, policy)


def trained_steps(sampler: Sampler) -> TrainedSteps:
    """The trained steps: the sampler's own choice, else every stochastic step with full anchor weight.

    For an ODE sampler, all steps but the last, which hardly moves the latents.
    """
    if sampler.trained is not None:
        return sampler.trained
    steps = sampler.stochastic.nonzero().flatten().tolist() or list(range(max(1, len(sampler.sigmas) - 2)))
    return TrainedSteps(tuple(steps), (1.0,) * len(steps))


def draw_window(size: int, start_min: int, start_max: int, seed: int) -> tuple[int, int]:
    """``[start, start + size)`` with ``start`` uniform in ``[start_min, start_max]``: a function of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(start_min, start_max + 1, (1,), generator=generator))
    return start, start + size


def choose_trained_steps(
    candidates: Sequence[int], seed: int, *, query: Query = Query(), every: int = 1, probability: float = 1.0
) -> TrainedSteps:
    """Choose some of the ``candidates`` by a query, and those of them with an anchor, by ``seed`` alone.

    The weighted mean over their rows is an unbiased estimate of the mean over all, if the query is. The anchor is on
    every ``every``-th of these from a uniform offset, or on each with ``probability``; its weight there is one over its
    chance of being used.
    """
    generator = seeded_generator(seed, "lessons")
    if query.beta is None:
        index = sorted(torch.randperm(len(candidates), generator=generator)[: query.steps].tolist())
    else:
        chances = query.chances(len(candidates))
        index = draw_systematic(chances, float(torch.rand((), generator=generator, dtype=torch.float64)))
    chosen, weights = [candidates[i] for i in index], query.weights(len(candidates))
    offset = int(torch.randint(every, (1,), generator=generator))
    hits = (torch.rand(len(chosen), generator=generator) < probability).tolist()
    used = [hit and i % every == offset for i, hit in enumerate(hits)]
    anchor = tuple(every / probability if use else 0.0 for use in used)
    weight = None if set(weights) == {1.0} else tuple(weights[i] for i in index)
    return TrainedSteps(tuple(chosen), anchor, weight)
