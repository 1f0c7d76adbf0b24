"""The machine's limits: the largest micro-batch that fits, and the rate of a plain matrix product."""

from __future__ import annotations

from contextlib import suppress

import psutil
import torch

from flowopd_cli.stages.bench.clock import seconds
from flowopd_cli.stages.bench.structures import forward
from flowopd_cli.stages.bench.world import World

MOST_ROWS = 4096
SHARE = 0.9  # of the free memory that an estimate may fill


def largest_micro_batch(world: World) -> dict[str, int | str]:
    """Rows of one student pass, forward and backward, that fit: tried by doubling on a GPU; elsewhere estimated from
    what autograd saves for one row and the memory that is free now.
    """
    if world.model.device.type == "cuda":
        return _tried(world)
    free = psutil.virtual_memory().available
    rows = int(SHARE * free / max(1, saved_bytes(world)))
    return {"rows": min(rows, MOST_ROWS), "how": f"estimated from one row and {free / 2**30:.1f} GiB of free memory"}


def saved_bytes(world: World) -> int:
    """Bytes that autograd saves for one row between forward and backward, without the weights."""
    model = world.model
    weights = {t.untyped_storage().data_ptr() for t in (*model.transformer.parameters(), *model.transformer.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        velocity = _student(world, 1)  # the graph lives as long as its output
    del velocity
    return sum(storage.nbytes() for storage in saved.values())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product in the model's precision: the bound of the passes."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(2):
        torch.mm(left, right)
    return 2 * size**3 / seconds(lambda: torch.mm(left, right), device, repeats=10)


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
    index = torch.arange(rows) % world.batch
    latents, sigma, cond = world.noise()
    with world.model.adapters.use("policy"):
        return forward(world.model, latents[index], sigma[index], cond[index], world.sampler.guidance)()
