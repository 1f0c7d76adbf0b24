"""What the machine can do: the largest micro-batch that fits, and the rate of a plain matrix product."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch

from flowopd_cli.stages.bench.clock import seconds
from flowopd_cli.stages.bench.structures import forward
from flowopd_cli.stages.bench.world import World

MEMORY = Path("/proc/meminfo")
MOST_ROWS = 4096
SHARE = 0.9  # of the free memory that an estimate may fill
PRODUCT = {"cpu": 1024, "cuda": 8192}


def largest_micro_batch(world: World) -> dict[str, int | str]:
    """Rows of one student pass, forward and backward, that fit: tried by doubling on a GPU; elsewhere estimated from
    what autograd keeps of one row and the memory that is free now.
    """
    if world.model.device.type == "cuda":
        return _tried(world)
    free = _free_bytes()
    if free is None:
        return {"rows": 0, "how": "not known: this system does not say how much memory is free"}
    rows = int(SHARE * free / max(1, kept_bytes(world)))
    return {"rows": min(rows, MOST_ROWS), "how": f"estimated from one row and {free / 2**30:.1f} GiB of free memory"}


def kept_bytes(world: World) -> int:
    """Bytes that autograd keeps of one row between forward and backward, weights left out."""
    model = world.model
    weights = {t.untyped_storage().data_ptr() for t in (*model.transformer.parameters(), *model.transformer.buffers())}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        velocity = _student(world, 1)
    size = sum(storage.nbytes() for storage in held.values())
    del velocity
    return size


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product in the model's precision: what the passes are compared with."""
    size = PRODUCT.get(device.type, 1024)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: torch.mm(left, right), device) for _ in range(12)]
    return 2 * size**3 / median(times[2:])


def _tried(world: World) -> dict[str, int | str]:
    rows, fits = 1, 0
    while rows <= MOST_ROWS:
        with suppress(torch.OutOfMemoryError):
            _student(world, rows).square().mean().backward()
            fits = rows
        world.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if fits < rows:
            break
        rows *= 2
    return {"rows": fits, "how": "found by doubling"}


def _student(world: World, rows: int) -> torch.Tensor:
    """One velocity of the policy with gradients, guidance included."""
    latents, sigma, cond = world.noise()
    index = torch.arange(rows) % world.batch
    latents, sigma, cond = latents[index], sigma[index], cond[index]
    once = forward(world.model, latents, sigma, cond, world.sampler.guidance)
    with world.model.adapters.use("policy"):
        return once()


def _free_bytes() -> int | None:
    """Memory that a program may still take, as the system says."""
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
