"""Times and memory: interleaved samples, the parts of an iteration, peaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flowopd_cli.stages.bench.world import World

Action = Callable[[], None]
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def seconds(action: Action, device: torch.device) -> float:
    """How long a call takes, its work on the device included."""
    return timed(action, device)[0]


def timed(action: Action, device: torch.device) -> tuple[float, float]:
    """Wall-clock seconds and CPU seconds of a call: equal for one thread on an idle machine; on a busy one the second
    shows what the first would have been.
    """
    _wait(device)
    started, worked = time.perf_counter(), time.process_time()
    action()
    _wait(device)
    return time.perf_counter() - started, time.process_time() - worked


def interleaved(
    actions: Mapping[str, Action], repeats: int, device: torch.device, on_round: Callable[[], None] = lambda: None
) -> dict[str, list[tuple[float, float]]]:
    """``repeats`` samples (:func:`timed`) of each action, round by round and each round begun with another, so that a
    disturbance of the machine hits all alike. Warm up before.
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    names = list(actions)
    for number in range(repeats):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(timed(actions[name], device))
        on_round()
    return samples


def parts(world: World, action: Action, repeats: int) -> dict[str, float]:
    """An iteration's seconds by what they went to: ``rollout`` (the policy without gradients), ``teacher``, ``anchor``,
    ``student`` (with gradients, and its backward), ``optimizer``, and ``rest``: mathematics of the steps, indexing,
    noise. Medians of ``repeats``; on a GPU the clock waits for every part, which the iteration itself does not.
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
    cleared = _clear_peak()
    action()
    return _process_peak(cleared)


def _parts_once(world: World, action: Action) -> dict[str, float]:
    spent = dict.fromkeys(("rollout", "teacher", "anchor", "student", "optimizer"), 0.0)
    model, device = world.model, world.model.device

    def recorded(call: Callable[..., Any], roles: Callable[[Mapping[str, Any]], Sequence[str]]) -> Callable[..., Any]:
        """The call, its seconds divided among ``roles`` of its options."""

        def run(*arguments: Any, **options: Any) -> Any:
            _wait(device)
            started = time.perf_counter()
            result = call(*arguments, **options)
            _wait(device)
            elapsed, names = time.perf_counter() - started, roles(options)
            for name in names:
                spent[name] += elapsed / len(names)
            return result

        return run

    def rows(options: Mapping[str, Any]) -> list[str]:
        return [_role(name) for name in options.get("adapters") or [model.adapters.active]]

    with (
        _replaced(model, "velocity", recorded(model.velocity, rows)),
        _replaced(torch.Tensor, "backward", recorded(torch.Tensor.backward, lambda _: ["student"])),
        _replaced(world.optimizer, "step", recorded(world.optimizer.step, lambda _: ["optimizer"])),
    ):
        whole = seconds(action, device)
    return spent | {"rest": max(0.0, whole - sum(spent.values())), "all": whole}


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of ``owner`` replaced inside the block."""
    original = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


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
