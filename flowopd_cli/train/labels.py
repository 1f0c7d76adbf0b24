"""Velocities of teachers and anchor at the policy's latents; adapters share a forward where that is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli.core.routing import check_routes
from flowopd_cli.core.sampler import Sampler, trained_steps
from flowopd_cli.core.steps import average_velocity
from flowopd_cli.core.types import Conditioning, Rollout
from flowopd_cli.models.base import FlowModel
from flowopd_cli.train.routes import Route, Target, Teacher, sole

MIXED_TOKENS = 2048


def parcels(
    teachers: Sequence[Teacher], tokens: int, batch: int, *, classifier_free: bool = True
) -> list[Int[Tensor, " n"]]:
    """The rows of each forward: ``teachers`` has one entry a row, of ``tokens`` tokens each.

    Rows of one adapter stay together, at most ``batch`` in a forward. Adapters share a forward of at most 2048 tokens,
    where the number of forwards costs more than their size (docs/performance.md); guidance that is ``classifier_free``
    doubles a row's tokens.
    """
    forwards: list[list[int]] = []
    rank = {name: i for i, name in enumerate(dict.fromkeys(teacher.adapter for teacher in teachers))}
    order = sorted(range(len(teachers)), key=lambda row: rank[teachers[row].adapter])
    for _, run in groupby(order, key=lambda row: teachers[row].adapter):
        rows = list(run)
        joined = [*forwards[-1], *rows] if forwards else rows
        passes = sum(2 if classifier_free and teachers[row].guidance != 1 else 1 for row in joined)
        if forwards and len(joined) <= batch and passes * tokens <= MIXED_TOKENS:
            forwards[-1] = joined
            continue
        pieces = -(-len(rows) // batch)
        forwards += [part.tolist() for part in torch.tensor(rows).chunk(pieces)]
    return [torch.tensor(rows) for rows in forwards]


def row_cost(model: FlowModel, latents: Float[Tensor, "*n C H W"], cond: Conditioning) -> int:
    """Tokens of a row's picture, in 2 x 2 patches, and text; above the limit if the model cannot mix adapters."""
    tokens = latents.shape[-2] * latents.shape[-1] // 4 + cond.embeds.shape[1]
    return tokens if model.adapters.mixes else MIXED_TOKENS + 1


@dataclass(frozen=True)
class Rows:
    """n (sample, step) pairs of B trajectories: the latents of row i are ``latents[sample[i], step[i]]``.

    ``texts`` are the B prompts, for teachers with a base of their own. With ``substeps`` a velocity is the average over
    the step from a row's sigma to that in ``sigmas_next``.
    """

    latents: Float[Tensor, "B T C H W"]
    sigmas: Float[Tensor, " T"]
    cond: Conditioning
    sample: Int[Tensor, " n"]
    step: Int[Tensor, " n"]
    texts: tuple[str, ...] = ()
    sigmas_next: Float[Tensor, " T"] | None = None
    substeps: int = 1

    @staticmethod
    def of_states(
        latents: Float[Tensor, "n C H W"], sigma: Float[Tensor, " n"], cond: Conditioning, texts: tuple[str, ...] = ()
    ) -> Rows:
        """One state a row, each with its own noise level."""
        index = torch.arange(len(latents))
        return Rows(latents[:, None].expand(-1, len(latents), -1, -1, -1), sigma, cond, index, index, texts)


@torch.no_grad()
def label(
    model: FlowModel, rows: Rows, targets: Sequence[Target], anchor: Teacher | None = None, *, batch: int = 32
) -> tuple[Float[Tensor, "m C H W"], Float[Tensor, "n C H W"] | None]:
    """Target velocities, each row's own weighted sum, and the anchor's; equal teachers of a row run once.

    ``targets`` has one entry a row (m = n), or none (m = 0) if only the anchor is needed. A forward has at most
    ``batch`` rows, all of one model. A teacher's own ``model`` encodes the rows' texts itself, and caches them.
    """
    if rows.substeps > 1:
        return _averages(model, rows, targets, anchor, batch)
    requests: dict[tuple[int, Teacher], int] = {}
    parts = [[requests.setdefault((row, teacher), len(requests)) for teacher, _ in t] for row, t in enumerate(targets)]
    indices = range(0 if anchor is None else len(rows.sample))
    anchors = [requests.setdefault((row, anchor), len(requests)) for row in indices if anchor is not None]
    velocity = rows.latents.new_empty(len(requests), *rows.latents.shape[2:])
    for base in dict.fromkeys(teacher.model for _, teacher in requests):
        own = [(row, teacher) for row, teacher in requests if teacher.model is base]
        velocity[[requests[request] for request in own]] = _velocities(base or model, rows, own, base is None, batch)
    weights = [[weight for _, weight in target] for target in targets]
    return _weighted_sums(velocity, parts, weights), None if anchor is None else velocity[anchors]


def _averages(
    model: FlowModel, rows: Rows, targets: Sequence[Target], anchor: Teacher | None, batch: int
) -> tuple[Float[Tensor, "m C H W"], Float[Tensor, "n C H W"] | None]:
    """As :func:`label`, averaged over each row's step: every target, and the anchor, walks it by its own velocity."""
    assert rows.sigmas_next is not None
    count = len(rows.sample)
    walks = [*targets, *([sole(anchor)] * count if anchor is not None else [])]
    kinds = [tuple(teacher for teacher, _ in walk) for walk in walks]
    rank = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    order = torch.tensor([rank[kind] for kind in kinds], dtype=torch.long).argsort(stable=True)
    velocity = rows.latents.new_empty(len(walks), *rows.latents.shape[2:])
    for part in order.split(batch) if len(order) else ():
        samples, steps = rows.sample[part % count], rows.step[part % count]
        cond, texts = rows.cond[samples], tuple(rows.texts[i] for i in samples.tolist()) if rows.texts else ()

        def along(x: Tensor, sigma: Tensor, part=part, cond=cond, texts=texts) -> Tensor:
            own = [walks[i] for i in part.tolist()]
            return label(model, Rows.of_states(x, sigma, cond, texts), own, batch=batch)[0]

        x = rows.latents[samples, steps].float()
        sigma, sigma_next = (grid.to(x.device, torch.float32)[steps] for grid in (rows.sigmas, rows.sigmas_next))
        velocity[part] = average_velocity(along, x, sigma, sigma_next, rows.substeps).to(velocity.dtype)
    return velocity[: len(targets)], None if anchor is None else velocity[len(targets) :]


def _velocities(
    model: FlowModel, rows: Rows, requests: Sequence[tuple[int, Teacher]], student: bool, batch: int
) -> Float[Tensor, "r C H W"]:
    """The velocities of one model's requests; rows carry the conditioning of the ``student``'s model only."""
    index, teachers = torch.tensor([row for row, _ in requests]), [teacher for _, teacher in requests]
    samples, steps = rows.sample[index], rows.step[index]
    cond, places = rows.cond, samples
    if not student:
        place: dict[str, int] = {}
        places = torch.tensor([place.setdefault(rows.texts[sample], len(place)) for sample in samples.tolist()])
        cond = model.encode(list(place))
    velocity = rows.latents.new_empty(len(requests), *rows.latents.shape[2:])
    sigmas = rows.sigmas.to(rows.latents.device, torch.float32)
    tokens = row_cost(model, rows.latents, cond)
    for part in parcels(teachers, tokens, batch, classifier_free=model.classifier_free):
        b, t = samples[part], steps[part]
        owners = [teachers[i] for i in part.tolist()]
        velocity[part] = velocity_of(model, owners, rows.latents[b, t].float(), sigmas[t], cond[places[part]]).to(
            velocity.dtype
        )
    return velocity


def _weighted_sums(
    velocity: Float[Tensor, "r C H W"], parts: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]
) -> Float[Tensor, "m C H W"]:
    """The weighted sum of each row's ``parts`` among the velocities."""
    if all(row == [1.0] for row in weights):
        return velocity[[row[0] for row in parts]]
    width = max(map(len, parts))
    index = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in parts])
    factors = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in weights]).to(velocity)
    columns = [factors[:, i, None, None, None] * velocity[index[:, i]] for i in range(width)]
    return sum(columns[1:], columns[0])


@torch.no_grad()
def velocity_of(
    model: FlowModel,
    teachers: Sequence[Teacher],
    latents: Float[Tensor, "b C H W"],
    sigma: Float[Tensor, " b"],
    cond: Conditioning,
) -> Float[Tensor, "b C H W"]:
    """Each row's velocity by its own teacher, in one forward: a mixed batch where there are several adapters."""
    names, scales = [t.adapter for t in teachers], [t.guidance for t in teachers]
    if len(set(names)) > 1:
        return model.velocity(latents, sigma, cond, guidance=scales, adapters=names)
    with model.adapters.use(names[0]):
        return model.velocity(latents, sigma, cond, guidance=scales[0] if len(set(scales)) == 1 else scales)


def with_labels(
    model: FlowModel,
    sampler: Sampler,
    rolled: Rollout,
    routes: Mapping[str, Route] | None,
    anchor: Teacher | None,
    *,
    batch: int = 32,
) -> Rollout:
    """Velocities ``(B, T, C, H, W)`` of targets and anchor at the policy's own latents, ``batch`` rows a forward.

    ``routes`` gives each prompt its target by task; ``None`` labels no targets. The anchor (MAR's, or for GRPO the base
    as KL reference) labels no steps whose anchor weight is 0; ``anchor_weight (T,)`` is set where a weight is not 1.
    """
    trained = trained_steps(sampler)
    weights = dict(zip(trained.steps, trained.anchor if anchor else (0.0,) * len(trained.steps), strict=True))
    if anchor is not None and set(trained.anchor) != {1.0}:
        weight = torch.zeros(len(sampler.sigmas) - 1)
        weight[list(trained.steps)] = torch.tensor(trained.anchor)
        rolled = replace(rolled, anchor_weight=weight.to(rolled.trajectory.latents.device))
    if routes is not None:
        check_routes([prompt.task for prompt in rolled.prompts], tuple(routes))
        rolled = replace(rolled, target_velocity=torch.zeros_like(rolled.trajectory.latents[:, :-1]))
    if any(weights.values()):
        rolled = replace(rolled, anchor_velocity=torch.zeros_like(rolled.trajectory.latents[:, :-1]))
    by_prompt = [routes[prompt.task].target(prompt) for prompt in rolled.prompts] if routes is not None else []
    for anchored in (True, False):
        steps = [step for step, weight in weights.items() if bool(weight) is anchored]
        rows = _rows_at(rolled, steps, sampler.substeps)
        targets = [by_prompt[sample] for sample in rows.sample.tolist()] if routes is not None else []
        labels = label(model, rows, targets, anchor if anchored else None, batch=batch)
        for field, velocity in zip((rolled.target_velocity, rolled.anchor_velocity), labels, strict=True):
            if field is not None and velocity is not None and len(velocity):
                field[rows.sample, rows.step] = velocity
    return rolled


def _rows_at(rolled: Rollout, steps: Sequence[int], substeps: int) -> Rows:
    pairs = torch.cartesian_prod(torch.arange(len(rolled.prompts)), torch.tensor(list(steps), dtype=torch.long))
    latents, sigmas = rolled.trajectory.latents[:, :-1], rolled.trajectory.sigmas
    texts = tuple(prompt.text for prompt in rolled.prompts)
    return Rows(latents, sigmas[:-1], rolled.cond, pairs[:, 0], pairs[:, 1], texts, sigmas[1:], substeps)
