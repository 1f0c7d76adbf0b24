"""The training loop: accumulation by count, clipping, EMA adapter, checkpoints, resume."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

import torch
from torch import Tensor, nn

from flowopd_cli.core.types import Loss, StepBatch
from flowopd_cli.errors import DivergedError, Interrupted, MissingDependency
from flowopd_cli.models.base import FlowModel
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.train import average
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump, Fault
from flowopd_cli.train.objectives import Objective
from flowopd_cli.train.recorder import NullRecorder, Recorder

BUCKET = 1 << 26  # gradients that are summed at once over the processes, and parameters that are updated at once
MicroBatches = Sequence[StepBatch] | Generator[StepBatch, Loss, None]
Experience = Callable[[int], tuple[Iterable[MicroBatches], Mapping[str, float]]]


@dataclass(frozen=True)
class FitSettings:
    """Numbers of the loop; one iteration is one rollout and its optimizer steps."""

    iterations: int
    lr: float
    optimizer: str = "adamw"
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    updates: int = 1
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9
    ema_every: int = 1
    checkpoint_every: int = 50
    skip_limit: int = 5


@dataclass
class Meter:
    """Sums of metrics and their counts; each of ``parts`` has a count of its own."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, loss: Loss) -> None:
        """Count one micro-batch."""
        parts = loss.parts and dict(zip(loss.parts.names, zip(*loss.parts.table.tolist(), strict=True), strict=True))
        self.merge(Meter({name: float(value) for name, value in loss.metrics.items()}, loss.count, parts or {}))

    def merge(self, other: Meter) -> None:
        """Add the sums of another meter."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += other.count
        for name, pair in other.parts.items():
            before = self.parts.get(name, (0.0, 0.0))
            self.parts[name] = (before[0] + pair[0], before[1] + pair[1])


def means(meters: Iterable[Meter]) -> dict[str, float]:
    """Means over the rows of all processes; a part without rows is left out."""
    whole = Meter()
    for meter in meters:
        whole.merge(meter)
    figures = {name: total / max(whole.count, 1) for name, total in whole.sums.items()}
    return figures | {name: total / count for name, (total, count) in whole.parts.items() if count}


@dataclass
class Guard:
    """Checks the micro-batches of one optimizer step; ``fault`` and ``batch`` are those of the first bad one."""

    parameters: Sequence[nn.Parameter]
    fault: Fault | None = None
    batch: StepBatch | None = None

    def passes(self, loss: Loss, batch: StepBatch) -> bool:
        """Whether loss and gradient are finite after the backward of ``batch``, as those before it were."""
        if self.fault is not None:
            return False
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if bool(torch.isfinite(loss.total.detach()) & finite(gradients).to(loss.total.device)):
            return True
        what = "gradient" if bool(torch.isfinite(loss.total.detach())) else "loss"
        self.fault, self.batch = Fault(what, tuple(dict.fromkeys(p.text for p in batch.prompts or ()))), batch
        return False


def finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every number of every tensor is finite: a boolean tensor ``()``."""
    if not tensors:
        return torch.tensor(True)
    norms = torch._foreach_norm(list(tensors), float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).isfinite().all()


def fit(
    model: FlowModel,
    experience: Experience,
    objective: Objective,
    settings: FitSettings,
    *,
    state: TrainState | None = None,
    recorder: Recorder | None = None,
) -> TrainState:
    """Train ``policy`` until ``settings.iterations``; ``state`` continues an earlier run exactly.

    ``experience(i)`` returns the optimizer steps of iteration i, each a list of micro-batches, and figures to log. A
    generator of micro-batches is sent the loss of each before it yields the next. The gradient of a step is that of
    (sum of totals) / (sum of counts) over micro-batches and processes, so neither split can change it; one that is not
    finite is skipped. If a stop, an error or the recorder ends the training early, a checkpoint has the last finished
    iteration.

    Raises :class:`Interrupted`: the user stopped the run.
    Raises :class:`DivergedError`: ``settings.skip_limit`` optimizer steps in a row were skipped.
    """
    parameters = model.adapters.trainable()
    optimizer = make_optimizer(settings.optimizer, parameters.values(), settings.lr, settings.weight_decay)
    state = state or TrainState.fresh(model)
    learner = _Learner(model, optimizer, [*parameters.values()], objective, settings, recorder or NullRecorder())
    learner.saved = state.iteration
    with _stop_requests() as stop:
        state.restore(model, optimizer)
        ended = any(GROUP.gather(learner.recorder.ends()))
        if state.iteration:  # the sample pictures that were due there may be missing
            last = ended or state.iteration == settings.iterations
            learner.recorder.sample(state.iteration, last=last, resumed=True)
        elif figures := learner.recorder.watch(0, 0, last=False):
            learner.recorder.row({"iteration": 0, "step": 0, **figures})
        while state.iteration < settings.iterations and not ended:
            with learner.rescuing(state):
                row = learner.iteration(experience, state)
            last = state.iteration == settings.iterations
            learner.recorder.row(learner.watched(row, state, last=last))
            with learner.rescuing(state):
                ended = any(GROUP.gather(learner.recorder.ends()))
                last = last or ended
                learner.recorder.sample(state.iteration, last=last)
                stopping = any(GROUP.gather(stop())) and not last
            if last or stopping or state.iteration % settings.checkpoint_every == 0:
                with GROUP.together():  # all processes learn whether it was saved
                    learner.save(state)
            if stopping:
                raise Interrupted(f"stopped after iteration {state.iteration} of {settings.iterations}")
    return state


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``adamw`` is PyTorch's; ``adamw8bit`` that of bitsandbytes, with the moments of large parameters in 8 bits."""
    parameters = list(parameters)
    if name == "adamw":
        large = sum(parameter.numel() for parameter in parameters) > BUCKET
        foreach = False if large else None  # an update of all at once needs as much memory again
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, foreach=foreach)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency("bitsandbytes", extra="int8") from error
    return AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)


@dataclass
class _Learner:
    """Turns experience into optimizer steps."""

    model: FlowModel
    optimizer: torch.optim.Optimizer
    parameters: Sequence[torch.nn.Parameter]
    objective: Objective
    settings: FitSettings
    recorder: Recorder
    saved: int = 0

    def save(self, state: TrainState) -> None:
        """Save a checkpoint."""
        self.saved = state.iteration
        state.capture(self.model, self.optimizer)
        self.recorder.checkpoint(state.iteration, state)

    @contextmanager
    def rescuing(self, state: TrainState) -> Iterator[None]:
        """Save the finished iterations if the block fails, unless an optimizer step has changed the policy since."""
        step = state.step
        try:
            yield
        except Exception:
            if state.step == step and state.iteration > self.saved:
                with suppress(Exception):
                    self.save(state)
            raise

    def watched(self, row: dict[str, float], state: TrainState, *, last: bool) -> dict[str, float]:
        """The row with the figures of a watch, if one is due; if that fails, the row is logged and the state saved."""
        try:
            return {**row, **self.recorder.watch(state.iteration, state.step, last=last)}
        except Exception:
            with self.rescuing(state):
                self.recorder.row(row)
                raise

    def iteration(self, experience: Experience, state: TrainState) -> dict[str, float]:
        """One rollout and its optimizer steps; advances the counters of ``state`` and returns the row to log."""
        started, meter, norm, skipped = time.perf_counter(), Meter(), 0.0, 0
        updates, figures = experience(state.iteration)
        collected = time.perf_counter()
        for micro_batches in self._counted(updates, state):
            if not self._gradients(micro_batches, meter, state):
                skipped += 1
                continue
            norm = self._update(state)
        state.iteration += 1
        row = {"iteration": state.iteration, "step": state.step, **figures, **means(GROUP.gather(meter))}
        row |= {"grad_norm": norm, "skipped": skipped}
        return row | {"seconds_collect": collected - started, "seconds_learn": time.perf_counter() - collected}

    def _counted(self, updates: Iterable[MicroBatches], state: TrainState) -> Iterator[MicroBatches]:
        """The same optimizer steps; an iteration without steps counts as a skipped step."""
        count = 0
        for count, micro_batches in enumerate(updates, start=1):  # noqa: B007
            yield micro_batches
        state.skipped += count == 0
        if count == 0 and state.skipped >= self.settings.skip_limit:
            raise DivergedError(
                f"iteration {state.iteration + 1}: for {state.skipped} iterations no picture could be scored, so "
                "nothing was learned: look at the reward, and at whether the policy still draws pictures"
            )

    def _gradients(self, micro_batches: MicroBatches, meter: Meter, state: TrainState) -> bool:
        """Accumulate d(sum of totals) / (sum of counts) into ``.grad``; false if there is nothing finite to learn."""
        count, guard, accepted = 0, Guard(self.parameters), Meter()
        with self.model.adapters.use("policy"):
            batches, loss = iter(micro_batches), None
            while (batch := _after(batches, loss)) is not None:
                loss = self.objective(batch)
                loss.total.backward()
                count += loss.count
                if guard.passes(loss, batch):
                    accepted.add(loss)
        counts, faults = zip(*GROUP.gather((count, guard.fault)), strict=True)
        fault, total = next(filter(None, faults), None), sum(counts)
        if fault is None and total:
            self._sum(total, learned=count > 0)
            if not finite([p.grad for p in self.parameters if p.grad is not None]):
                fault = Fault("gradient")
        if fault is not None or not total:
            self.optimizer.zero_grad(set_to_none=True)
        state.skipped = 0 if fault is None else state.skipped + 1
        if fault is not None:
            self._skip(fault, guard, state)
            return False
        meter.merge(accepted)
        return total > 0

    def _skip(self, fault: Fault, guard: Guard, state: TrainState) -> None:
        """Report a skipped optimizer step; too many in a row end the training."""
        iteration = state.iteration + 1
        if state.skipped < self.settings.skip_limit:
            self.recorder.fault(iteration, fault, None)
            return
        local = None if guard.batch is None else guard.batch.to("cpu")
        batch = next((batch for batch in GROUP.gather(local) if batch is not None), None)
        dump = Dump(iteration, state.step, fault, self.model.adapters.state("policy"), batch)
        with GROUP.together():
            where = self.recorder.fault(iteration, fault, dump)
        raise DivergedError(
            f"iteration {iteration}: {fault}, for the {state.skipped}. optimizer step in a row; {where}. "
            "Go on with --resume and a lower train.lr or train.max_grad_norm"
        )

    def _sum(self, count: int, *, learned: bool) -> None:
        """All-reduce the gradients as flat tensors and divide by ``count``."""
        if learned and any(p.grad is None for p in self.parameters):
            raise RuntimeError("a policy parameter got no gradient: was an adapter switched before backward?")
        for bucket in _buckets(self.parameters):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = GROUP.sum(torch.cat([gradient.flatten() for gradient in gradients])).div_(count)
            for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = piece.view_as(parameter)

    def _update(self, state: TrainState) -> float:
        """One clipped AdamW step and its EMA; returns the gradient's norm before clipping."""
        settings, norm = self.settings, nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(state.step, settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if settings.ema_decay and state.step % settings.ema_every == 0:
            average.update(self.model, settings.ema_decay, state.step)
        return float(norm)


def lr_factor(step: int, settings: FitSettings) -> float:
    """The share of the learning rate at optimizer step ``step``, counted from 0.

    A linear warm-up, then constant, or down to 0 at the planned end linearly or by half a cosine. Skipped steps do not
    count, so they leave the rate above 0 at the end.
    """
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    planned = settings.iterations * settings.updates - settings.warmup
    done = min((step - settings.warmup) / max(1, planned), 1.0)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in groups of about :data:`BUCKET` numbers."""
    bucket, size = list[nn.Parameter](), 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def _after(batches: Iterator[StepBatch], loss: Loss | None) -> StepBatch | None:
    """The next micro-batch; a generator is sent the loss of the one before. ``None`` at the end."""
    try:
        return batches.send(loss) if isinstance(batches, Generator) else next(batches)
    except StopIteration:
        return None


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """The first SIGINT, SIGTERM or SIGHUP asks the loop to stop after this iteration, the second one stops at once.

    An ignored SIGHUP, as under nohup, stays ignored.
    """
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        numbers = (signal.SIGINT, signal.SIGTERM, *hangup)
        before = {number: signal.signal(number, request_stop) for number in numbers}
    except ValueError:  # not the main thread: signals stay with whoever owns them
        before = {}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
