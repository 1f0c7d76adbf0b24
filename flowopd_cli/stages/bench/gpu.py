"""``doctor --gpu-check``: what only a GPU can show, on random weights, as one table within six minutes."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.attention import BACKENDS, choose_attention
from flowopd_cli.models.files.families import family_of
from flowopd_cli.models.loading import take_device
from flowopd_cli.models.memory import measure, needs
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.quantization import KINDS
from flowopd_cli.recipe import DistillRecipe, TeacherRecipe, TrainedRecipe, cost
from flowopd_cli.stages.bench import clock, structures, teachers
from flowopd_cli.stages.bench.measure import floor_by_role, operations, where
from flowopd_cli.stages.bench.world import World, build
from flowopd_cli.stages.training.model import load_options
from flowopd_cli.system.progress import Progress, Silent
from flowopd_cli.system.text import gib

FREE = 0.85  # share of the free memory that an iteration may take by its estimate
# Seconds after which no further check begins, after which a running one is stopped, and in all.
LIMIT, STOP, LONGEST = 300.0, 350.0, 360.0
GUIDANCE = 4.5
SPEEDUP, SHARE, ESTIMATE = 3.0, 0.4, 0.1  # targets, explained in docs/performance.md
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}  # of gradients, relative
QUANTIZED_TOLERANCE = {"int8": 0.05, "nf4": 0.3}  # of velocities, relative
Verdict = Literal["", "ok", "missed", "failed", "not run"]


@dataclass(frozen=True)
class Row:
    """A check, its figure, its target and the verdict; the last two are empty for a figure without a target."""

    check: str
    figure: str
    target: str = ""
    verdict: Verdict = ""


@dataclass(frozen=True)
class Size:
    """The base by the name of its shape, the most pictures of an iteration, and the samples of each time."""

    shape: str = "sd3.5-medium"
    resolution: int = 512
    text_tokens: int = 128
    pictures: int = 8
    steps: int = 4
    device: str = "cuda"
    compile: str = "default"
    repeats: int = 3


def run(size: Size, progress: Progress) -> list[Row]:
    """All checks in order. One that raises becomes a failed row after those that it has made.

    The others follow, unless it is the first, with which they compare. A check that runs when ``STOP`` seconds have
    passed is stopped, where the system has an alarm and this is the main thread.

    Raises :class:`ArtifactError`: there is no such device.
    """
    device = take_device(size.device)
    if device.type == "cuda":
        room = FREE * torch.cuda.mem_get_info(device)[0]
        fitting = (n for n in (8, 4, 2, 1) if _estimate(_recipe(replace(size, pictures=n)), "bfloat16") < room)
        size = replace(size, pictures=next(fitting, 1))
    checks, started, rows = _Checks(size), time.monotonic(), list[Row]()
    for name, check in checks.named().items():
        seconds = time.monotonic() - started
        if seconds > LIMIT or not checks.comparable:
            reason = "no time left" if seconds > LIMIT else "the first check has failed"
            rows.append(Row(name, reason, verdict="not run"))
            continue
        progress.note(f"gpu-check: {name}, {seconds:.0f} s")
        try:
            with _stopped_after(STOP - seconds):
                for row in check():
                    progress.note(f"gpu-check: {row.check}: {row.figure} {row.verdict}")
                    rows.append(row)
        except _Stopped:
            rows.append(Row(name, f"stopped after {STOP:.0f} s in all", verdict="not run"))
        except Exception as error:
            checks.comparable = name != "one pass"
            rows.append(Row(name, one_line(f"{type(error).__name__}: {error}")[:120], verdict="failed"))
        _free()
    seconds = time.monotonic() - started
    return [*rows, _row("seconds in all", f"{seconds:.0f}", f"at most {LONGEST:.0f}", seconds <= LONGEST)]


class _Stopped(BaseException):
    """The time is over; no ``except Exception`` of a library is to catch it."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raise :class:`_Stopped` in the block when so many seconds have passed."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 1.0)  # again: a finalizer swallows an exception
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Checks:
    """The checks; each builds its own model. ``seconds``, ``gradient`` and ``velocity`` are those of one pass.

    Not :attr:`comparable`: these are not known.
    """

    def __init__(self, size: Size) -> None:
        self.size, self.seconds, self.comparable = size, float("nan"), True
        self.gradient = self.velocity = torch.zeros(())

    def named(self) -> dict[str, Callable[[], Iterator[Row]]]:
        """The checks in order."""
        return {
            "one pass": self.passes,
            "checkpointing": self.checkpointing,
            **{f"base in {kind}": partial(self.quantized, kind) for kind in KINDS},
            **{f"teacher by {algorithm}": partial(self.teacher, algorithm) for algorithm in ("nft", "grpo")},
            "attention": self.attention,
            "released structure in float32": self.released,
            "compiled": self.compiled,
        }

    def passes(self) -> Iterator[Row]:
        """Time, memory and rate of one pass with two teachers and an anchor, and the gradient of ``replay``."""
        world = _world(_recipe(self.size))
        device, dtype = world.model.device, world.model.dtype
        fused, replay = structures.fused(world), structures.replay(world)
        self.velocity = _velocity(world.model)
        self.gradient, by_replay = _gradient(world, fused), _gradient(world, replay)
        difference, peak = _distance(by_replay, self.gradient), clock.peak_bytes(fused, device)
        self.seconds, second = (self._seconds(action, device) for action in (fused, replay))
        medians = {name: self._seconds(action, device) for name, action in structures.floor(world).items()}
        floor = sum(floor_by_role(world, medians).values())
        rates, limit = operations(world, floor), TOLERANCE[dtype]
        rate = f"{rates['share']:.0%} of {rates['matmul_per_second'] / 1e12:.1f} TFLOP/s"
        yield Row("device", f"{where(device)}, {_name(dtype)}, torch {torch.__version__}")
        yield _row("gradient of replay, off by", f"{difference:.1e}", f"{limit:g}", difference < limit)
        speed = f"{self.seconds:.3f} s, {world.batch / self.seconds:.2f} a second"
        yield Row(f"one pass, {world.batch} pictures", speed)
        yield Row("one pass / floor", f"{self.seconds / floor:.2f}")
        yield Row("replay / one pass", f"{second / self.seconds:.2f}")
        yield _memory("one pass, peak", peak, world.recipe, device, _name(dtype))
        yield _row("share of the matrix product's rate", rate, f"{SHARE:.0%}", rates["share"] >= SHARE)

    def checkpointing(self) -> Iterator[Row]:
        """Memory, time and gradient with gradient checkpointing."""
        return self._variant("checkpointing", {"train.gradient_checkpointing": True})

    def quantized(self, kind: str) -> Iterator[Row]:
        """Memory, time and velocity on a base in 8 or 4 bits."""
        return self._variant(f"base in {kind}", {"model.quantize": kind}, tolerance=QUANTIZED_TOLERANCE[kind])

    def compiled(self) -> Iterator[Row]:
        """Time of the first and a later iteration of compiled blocks, and their gradient."""
        return self._variant("compiled", {"model.compile": self.size.compile})

    def released(self) -> Iterator[Row]:
        """The passes of the released loop on a float32 base, scaled by its pictures, against one pass."""
        half = replace(self.size, pictures=max(1, self.size.pictures // 2))
        world = _world(_recipe(half, {"model.dtype": "float32", "model.tf32": False}))
        action = structures.upstream(world)
        action()
        scale = self.size.pictures / half.pictures
        ratio = scale * clock.seconds(action, world.model.device) / self.seconds
        yield _row("released structure in float32 / one pass", f"{ratio:.2f}", f"{SPEEDUP:g}", ratio >= SPEEDUP)

    def attention(self) -> Iterator[Row]:
        """Time of a forward by each attention backend, and its difference from the default's."""
        world = _world(_recipe(self.size))
        for name in BACKENDS:
            try:
                choose_attention(world.model.transformer, name)
                _velocity(world.model)
                off = _distance(_velocity(world.model), self.velocity)
                seconds = self._seconds(lambda: _velocity(world.model), world.model.device)
                limit = TOLERANCE[world.model.dtype]
                yield _row(f"attention {name}", f"{seconds:.4f} s, off by {off:.1e}", f"{limit:g}", off < limit)
            except ArtifactError:
                yield Row(f"attention {name}", "does not work here")
            except Exception as error:  # it passed its own trial
                yield Row(f"attention {name}", one_line(f"{type(error).__name__}: {error}")[:120], verdict="failed")

    def teacher(self, algorithm: str) -> Iterator[Row]:
        """An iteration of a teacher by an algorithm: time, memory, and whether its policy has a gradient."""
        tree = _tree(self.size) | {"stage": "teacher", "rewards": [{"name": "none"}], "algorithm": algorithm}
        tree["sampling"] |= {"kernel": "ode"} if algorithm == "nft" else {}
        recipe = recipes.build(tree)
        assert isinstance(recipe, TeacherRecipe)
        result = teachers.run({algorithm: recipe}, self.size.pictures, 1, Silent())
        figures, name = result["algorithms"][algorithm], f"teacher by {algorithm}"
        norm, speed = figures["grad_norm"], f"{figures['images_per_second']:.2f} pictures a second"
        yield Row(name, f"{figures['seconds']:.3f} s, {speed}")
        yield _row(f"{name}, norm of its gradient", f"{norm:.1e}", "above 0", 0 < norm < math.inf)
        device, dtype = take_device(self.size.device), result["machine"]["dtype"]
        yield _memory(f"{name}, peak", figures["peak_memory_bytes"], recipe, device, dtype)

    def _seconds(self, action: Callable[[], object], device: torch.device) -> float:
        return clock.seconds(action, device, self.size.repeats)

    def _variant(self, name: str, changes: dict[str, Any], tolerance: float = 0.0) -> Iterator[Row]:
        """One pass with other settings: its gradient, or with a ``tolerance`` its velocity, off by; time, memory."""
        world = _world(_recipe(self.size, changes))
        device, fused = world.model.device, structures.fused(world)
        off, limit = _distance(_velocity(world.model), self.velocity), tolerance
        gradients: list[Tensor] = []
        first, _ = clock.timed(lambda: gradients.append(_gradient(world, fused)), device)
        if not tolerance:
            off, limit = _distance(gradients[0], self.gradient), TOLERANCE[world.model.dtype]
        peak = clock.peak_bytes(fused, device)
        seconds = self._seconds(fused, device)
        what = "velocity" if tolerance else "gradient"
        yield _row(f"{name}, {what} off by", f"{off:.1e}", f"{limit:g}", off < limit)
        yield Row(f"{name}, time / one pass", f"{seconds / self.seconds:.2f} (first {first:.1f} s)")
        yield _memory(f"{name}, peak", peak, world.recipe, device, _name(world.model.dtype))


def _tree(size: Size) -> dict[str, Any]:
    """What all recipes of the checks share."""
    model = {"pretrained": size.shape, "family": family_of(size.shape), "resolution": size.resolution}
    model |= {"max_sequence_length": size.text_tokens, "device": size.device}
    train = {"groups": size.pictures, "group_size": 1, "micro": size.pictures, "rollout_batch": size.pictures}
    sampling = {"steps": size.steps, "guidance": GUIDANCE}
    return {"prompts": [{"source": "none"}], "model": model, "sampling": sampling, "train": train}


def _recipe(size: Size, changes: Mapping[str, Any] = MappingProxyType({})) -> DistillRecipe:
    """A distillation of two teachers with an anchor, under changes by dotted names."""
    tree = _tree(size) | {"stage": "distill", "anchor": {"ref": "anchor"}}
    tree["routing"] = {f"task{i}": {"ref": f"teacher-{i}"} for i in range(2)}
    for key, value in changes.items():
        recipes.assign(tree, key, value)
    recipe = recipes.build(tree)
    assert isinstance(recipe, DistillRecipe)
    return recipe


def _world(recipe: DistillRecipe) -> World:
    torch.manual_seed(0)  # equal weights in every check
    return build(recipe, recipe.train.groups, real_prompts=False)


def _estimate(recipe: TrainedRecipe, dtype: str) -> int:
    """The peak that ``--dry-run`` states, in bytes."""
    options = replace(load_options(recipe.model, recipe.adapter.targets), prompt_cache=None, dtype=dtype)
    footprint = measure(recipe.model.family, recipe.model.pretrained, options, recipe.adapter.rank)
    if footprint is None:
        raise ArtifactError(f"{recipe.model.pretrained}: its shape is not known")
    memory = needs(replace(footprint, quantize=recipe.model.quantize), cost.workload(recipe))
    return memory.peak(checkpointing=recipe.train.gradient_checkpointing)


def _memory(name: str, peak: int, recipe: TrainedRecipe, device: torch.device, dtype: str) -> Row:
    """The peak, on a GPU against the estimate of ``--dry-run``; elsewhere it is that of the whole process."""
    if device.type != "cuda":
        return Row(name, gib(peak, 2))
    estimate = _estimate(recipe, dtype)
    return _row(name, gib(peak, 2), f"{gib(estimate, 2)} ± 10 %", abs(peak / estimate - 1) <= ESTIMATE)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row(check: str, figure: str, target: str, reached: bool) -> Row:
    return Row(check, figure, target, "ok" if reached else "missed")


def _gradient(world: World, action: Callable[[], object]) -> Tensor:
    """The gradient of the policy in one iteration, just before its optimizer step, on the CPU."""
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([p.grad.flatten().float().cpu() for p in parameters if p.grad is not None]))

    handle = world.optimizer.register_step_pre_hook(keep)
    action()
    handle.remove()
    return gradients[0]


@torch.no_grad()
def _velocity(model: PipelineModel) -> Tensor:
    """The policy's velocity of two rows, on the CPU."""
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1)).to(model.device)
    cond = model.encode(["one", "two"])
    with model.adapters.use("policy"):
        return model.velocity(latents, torch.full((2,), 0.5, device=model.device), cond, guidance=1.0).cpu()


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
