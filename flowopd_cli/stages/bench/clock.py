"""Times and memory: interleaved samples, the parts of an iteration, peaks."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.stages.bench.world import World

Action = Callable[[], object]
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")  # writing 5 resets the peak


def seconds(action: Action, device: torch.device, repeats: int = 1) -> float:
    """Median wall-clock seconds of a call, its work on the device included."""
    return median(timed(action, device)[0] for _ in range(repeats))


def timed(action: Action, device: torch.device) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call: equal for one thread on an idle machine; other load changes the first."""
    _wait(device)
    started, worked = time.perf_counter(), time.process_time()
    action()
    _wait(device)
    return time.perf_counter() - started, time.process_time() - worked


def interleaved(
    actions: Mapping[str, Action], repeats: int, device: torch.device, on_round: Callable[[], None] = lambda: None
) -> dict[str, list[tuple[float, float]]]:
    """``repeats`` samples (:func:`timed`) of each action in rounds, each of which begins with another action, so that
    other load on the machine affects all alike. Warm up first.
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    names = deque(actions)
    for _ in range(repeats):
        for name in names:
            samples[name].append(timed(actions[name], device))
        names.rotate(-1)
        on_round()
    return samples


def parts(world: World, action: Action, repeats: int) -> dict[str, float]:
    """Seconds of an iteration by part: ``rollout`` (the policy without gradients), ``teacher`` (and base), ``anchor``,
    ``student`` (with gradients, and its backward), ``optimizer``, and ``rest``: mathematics of the steps, indexing,
    noise. Medians of ``repeats``. On a GPU each part is synchronized, which the iteration itself is not.
    """
    samples = [_parts_once(world, action) for _ in range(repeats)]
    return {name: median(sample[name] for sample in samples) for name in samples[0]}


def peak_bytes(action: Action, device: torch.device) -> int:
    """The most memory held while ``action`` runs: tensors on a GPU; elsewhere all of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        _wait(device)
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):  # a system without it gives the peak since the process began
        CLEAR.write_text("5")
    action()
    with suppress(OSError, ValueError, IndexError):
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parts_once(world: World, action: Action) -> dict[str, float]:
    spent: dict[str, float] = dict.fromkeys(("rollout", "teacher", "anchor", "student", "optimizer"), 0.0)
    device = world.model.device

    def recorded(call: Callable[..., Any], roles: Callable[[Mapping[str, Any]], Sequence[str]]) -> Callable[..., Any]:
        """The call, its seconds divided among ``roles`` of its options."""

        def run(*arguments: Any, **options: Any) -> Any:
            results: list[Any] = []
            elapsed = seconds(lambda: results.append(call(*arguments, **options)), device)
            names = roles(options)
            for name in names:
                spent[name] += elapsed / len(names)
            return results[0]

        return run

    def roles_on(model: PipelineModel) -> Callable[[Mapping[str, Any]], Sequence[str]]:
        return lambda options: [
            _role(world, model, name) for name in options.get("adapters") or [model.adapters.active]
        ]

    with ExitStack() as stack:
        for model in (world.model, *world.bases.values()):
            stack.enter_context(_replaced(model, "velocity", recorded(model.velocity, roles_on(model))))
        stack.enter_context(_replaced(torch.Tensor, "backward", recorded(torch.Tensor.backward, lambda _: ["student"])))
        stack.enter_context(_replaced(world.optimizer, "step", recorded(world.optimizer.step, lambda _: ["optimizer"])))
        whole = seconds(action, device)
    return spent | {"rest": max(0.0, whole - sum(spent.values())), "all": whole}


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute inside the block; a class's own method is put back, an instance's override deleted."""
    original = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if original is None else setattr(owner, name, original)


def _role(world: World, model: PipelineModel, adapter: str | None) -> str:
    if adapter == "policy":
        return "student" if torch.is_grad_enabled() else "rollout"
    anchors = model is world.model and world.anchor is not None and world.anchor.adapter == adapter
    return "anchor" if anchors else "teacher"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
