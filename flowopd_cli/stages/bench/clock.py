"""Seconds and bytes: interleaved samples, the parts of an iteration, peaks of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from flowopd_cli.stages.bench.world import World

Action = Callable[[], None]
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def seconds(action: Action, device: torch.device) -> float:
    """How long a call takes, its work on the device included."""
    return both(action, device)[0]


def both(action: Action, device: torch.device) -> tuple[float, float]:
    """Seconds of a call on the clock, and of this process's own work in it: the same on one thread of an idle machine,
    and on a busy one the second says what the first would have been.
    """
    _wait(device)
    started, worked = time.perf_counter(), time.process_time()
    action()
    _wait(device)
    return time.perf_counter() - started, time.process_time() - worked


def interleaved(
    actions: Mapping[str, Action], repeats: int, device: torch.device, on_round: Callable[[], None] = lambda: None
) -> dict[str, list[tuple[float, float]]]:
    """``repeats`` samples (:func:`both`) of each action, round by round and each round begun with another, so that what
    disturbs the machine disturbs all alike. Warm up before.
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    names = list(actions)
    for number in range(repeats):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(both(actions[name], device))
        on_round()
    return samples


def parts(world: World, action: Action, repeats: int) -> dict[str, float]:
    """An iteration's seconds by what they went to: ``rollout`` (the policy without gradients), ``teacher``, ``anchor``,
    ``student`` (with gradients, and its backward), ``optimizer``, and ``rest``: mathematics of the steps, indexing,
    noise. Medians of ``repeats``; on a GPU the clock waits for every part, which the iteration itself does not.
    """
    found = [_parts_once(world, action) for _ in range(repeats)]
    return {name: median(sample[name] for sample in found) for name in found[0]}


def peak_bytes(action: Action, device: torch.device) -> int:
    """The most memory held while ``action`` runs: tensors on a GPU; elsewhere all of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        _wait(device)
        return torch.cuda.max_memory_allocated(device)
    cleared = _clear_peak()
    action()
    return _process_peak(cleared)


def _parts_once(world: World, action: Action) -> dict[str, float]:
    spent = dict.fromkeys(("rollout", "teacher", "anchor", "student", "optimizer"), 0.0)
    model, device = world.model, world.model.device
    velocity, backward, step = model.velocity, torch.Tensor.backward, world.optimizer.step

    @contextmanager
    def counted(name: str) -> Iterator[None]:
        _wait(device)
        started = time.perf_counter()
        yield
        _wait(device)
        spent[name] += time.perf_counter() - started

    def timed_velocity(*arguments: Any, **options: Any) -> torch.Tensor:
        rows = options.get("adapters") or [model.adapters.active]
        _wait(device)
        started = time.perf_counter()
        result = velocity(*arguments, **options)
        _wait(device)
        elapsed = time.perf_counter() - started
        for name in rows:  # of a mixed batch each row takes its part
            spent[_role(name)] += elapsed / len(rows)
        return result

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with counted(name):
                return call(*arguments, **options)

        return run

    with (
        patch.object(model, "velocity", timed_velocity),
        patch.object(torch.Tensor, "backward", timed("student", backward)),
        patch.object(world.optimizer, "step", timed("optimizer", step)),
    ):
        whole = seconds(action, device)
    return spent | {"rest": max(0.0, whole - sum(spent.values())), "all": whole}


def _role(adapter: str | None) -> str:
    if adapter == "policy":
        return "student" if torch.is_grad_enabled() else "rollout"
    return "anchor" if adapter in {"anchor", None} else "teacher"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clear_peak() -> bool:
    """Forget the peak of this process so far, where the system can."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _process_peak(cleared: bool) -> int:
    """The peak since it was cleared; where that cannot be, the peak of the process's whole life."""
    if cleared:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
