"""The measurement: warm up, sample, split an iteration into its parts, derive the figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import Any

import torch

from flowopd_cli.models.files.families import family, named_shapes
from flowopd_cli.models.memory import measure
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.recipe import DistillRecipe, ModelSpec
from flowopd_cli.stages.bench import clock, limits, structures
from flowopd_cli.stages.bench.world import World, build
from flowopd_cli.stages.training.data import make_rewards
from flowopd_cli.stages.training.model import load_options
from flowopd_cli.system.progress import Progress

FLOOR = ("student", "teacher", "anchor")


@dataclass(frozen=True)
class Request:
    """What to measure: ``batch`` pictures (the recipe's iteration if ``None``), ``repeats`` samples of each structure.

    ``real`` says that the recipe was named: its prompts are read and its rewards timed.
    """

    recipe: DistillRecipe
    batch: int | None
    repeats: int
    real: bool


def run(request: Request, progress: Progress) -> dict[str, Any]:
    """Measure and return the figures; every ``..._seconds`` is for one iteration of the same rows.

    ``cpu`` has the same in CPU seconds of this process, which other programs hardly change; ``samples`` has both, raw.

    Raises :class:`FlowOPDError`: the base, its prompts or its rewards cannot be loaded.
    """
    world = build(request.recipe, request.batch, real_prompts=request.real)
    device = world.model.device
    floor = structures.floor(world)
    whole = {"fused": structures.fused(world), "replay": structures.replay(world)}
    whole["upstream_structure"] = structures.upstream(world)
    progress.note(f"bench: {world.batch} pictures, {world.steps} trained steps, {where(device)}")
    for action in floor.values():
        action()
    peaks = {name: clock.peak_bytes(action, device) for name, action in whole.items()}
    progress.start(request.repeats, "rounds")
    samples = clock.interleaved({**floor, **whole}, request.repeats, device, lambda: progress.step({}))
    progress.done()
    wall, cpu = ({name: median(pair[i] for pair in pairs) for name, pairs in samples.items()} for i in (0, 1))
    split = {name: clock.parts(world, whole[name], min(3, request.repeats)) for name in ("fused", "replay")}
    roles, extras = floor_by_role(world, wall), _extras(world, request)
    return {
        "floor_seconds": sum(roles.values()),
        **{f"{name}_seconds": wall[name] for name in whole},
        "peak_memory_bytes": peaks["fused"],
        "images_per_second": world.batch / wall["fused"],
        "floor": roles,
        "ratios": _ratios(world, wall),
        "operations": operations(world, sum(roles.values())),
        "split": split,
        "extras": extras,
        "hours": _hours(world, wall["fused"], extras),
        "cpu": {"seconds": cpu, "ratios": _ratios(world, cpu)},
        "largest_micro_batch": limits.largest_micro_batch(world),
        "peaks": peaks,
        "machine": machine(world.model),
        "settings": _settings(world),
        "samples": {name: [list(pair) for pair in pairs] for name, pairs in samples.items()},
    }


def machine(model: PipelineModel) -> dict[str, Any]:
    """Where this was measured, and in which precision."""
    return {
        "device": where(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def where(device: torch.device) -> str:
    """The name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.processor() or platform.machine()}"


def floor_by_role(world: World, medians: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the required passes by role; the anchor's at its share of the steps."""
    shares = {"anchor": world.anchor_share}
    return {role: medians[role] * shares.get(role, 1.0) for role in FLOOR if role in medians}


def _ratios(world: World, medians: Mapping[str, float]) -> dict[str, float]:
    """Times of the structures relative to each other; the floor of ``replay_to_its_floor`` includes the rollout."""
    rollout = medians["forward"] * world.recipe.sampling.steps / world.steps
    floor = sum(floor_by_role(world, medians).values())
    fused, replay, upstream = (medians[name] for name in ("fused", "replay", "upstream_structure"))
    return {
        "fused_to_floor": fused / floor,
        "replay_to_floor": replay / floor,
        "replay_to_its_floor": replay / (floor + rollout),
        "upstream_structure_to_fused": upstream / fused,
        "upstream_structure_to_replay": upstream / replay,
    }


def operations(world: World, floor: float) -> dict[str, float]:
    """Operations of the floor's passes (a backward counts as a forward), and their rate."""
    bases = {world.model: world.recipe.model, **{base: spec for spec, base in world.bases.items()}}
    one = {base: _forward_operations(base, spec) for base, spec in bases.items()}
    if not all(one.values()):
        return {}
    roles: list[tuple[Any, float, float]] = [(world.model, world.sampler.guidance, world.batch)] * 2
    roles += [(world.model, world.anchor.guidance, world.batch * world.anchor_share)] if world.anchor else []
    roles += [(teacher.model or world.model, teacher.guidance, len(rows)) for teacher, rows in world.labelers]
    total = sum(rows * family(bases[base].family).halves(guidance) * one[base] for base, guidance, rows in roles)
    rate = limits.matmul_rate(world.model.device, world.model.dtype)
    passes = world.steps * total / floor
    return {
        "forward_of_one_row": one[world.model],
        "passes_per_second": passes,
        "matmul_per_second": rate,
        "share": passes / rate,
    }


def _forward_operations(base: PipelineModel, spec: ModelSpec) -> int:
    """Operations of one row; 0 if the shape is not known."""
    dtype = str(base.dtype).removeprefix("torch.")
    options = replace(load_options(spec, ()), dtype=dtype, prompt_cache=None)
    footprint = measure(spec.family, spec.pretrained, options, rank=0)
    return footprint.operations if footprint else 0


def _extras(world: World, request: Request) -> dict[str, float]:
    """Seconds of one batch for occasional work: encoding, decoding, scoring."""
    model, device, prompts = world.model, world.model.device, world.draw.prompts
    seconds: dict[str, float] = {}
    if world.recipe.model.pretrained not in named_shapes():
        texts = ([f"{prompt.text}, picture {number}" for prompt in prompts] for number in count())  # not in the cache
        model.encode(next(texts))
        seconds["encode"] = clock.seconds(lambda: model.encode(next(texts)), device, request.repeats)
        model.release_encoders()
    latents = world.noise()[0]
    pictures = model.decode(latents)
    seconds["decode"] = clock.seconds(lambda: model.decode(latents), device, request.repeats)
    if request.real and world.recipe.rewards:
        score = make_rewards(world.recipe.rewards, world.sources)
        score(pictures, prompts)
        seconds["rewards"] = clock.seconds(lambda: score(pictures, prompts), device, request.repeats)
    return seconds


def _hours(world: World, fused: float, extras: Mapping[str, float]) -> float:
    """Hours that the recipe's iterations take at this rate on one device, logged rewards included."""
    train, every = world.recipe.train, world.recipe.opd.log_rewards_every
    batches = train.groups * train.group_size / world.batch
    logged = (extras.get("decode", 0.0) + extras.get("rewards", 0.0)) / every if every else 0.0
    return train.iterations * batches * (fused + logged) / 3600


def _settings(world: World) -> dict[str, Any]:
    recipe, anchor = world.recipe, world.anchor
    teachers = {teacher for route in world.routes.values() for teacher, _ in route.teachers}
    return {
        "base": recipe.model.pretrained,
        "latents": list(world.model.latent_shape),
        "pictures": world.batch,
        "steps": recipe.sampling.steps,
        "trained_steps": world.steps,
        "rank": recipe.adapter.rank,
        "adapters": sum(len(base.adapters.names) for base in (world.model, *world.bases.values())),
        "teachers": len({(teacher.model, teacher.adapter) for teacher in teachers}),
        "own_bases": [spec.pretrained for spec in world.bases],
        "guidance": world.sampler.guidance,
        "teacher_guidance": sorted({teacher.guidance for teacher in teachers}),
        "extrapolate": recipe.opd.extrapolate,
        "anchor_guidance": None if anchor is None else anchor.guidance,
        "iterations": recipe.train.iterations,
        "pictures_per_iteration": recipe.train.groups * recipe.train.group_size,
    }
