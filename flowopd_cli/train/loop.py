"""The training loop: accumulation by count, clipping, EMA adapter, checkpoints, resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, runtime_checkable

import torch

from flowopd_cli.core.types import Loss, StepBatch
from flowopd_cli.errors import DivergedError, Interrupted
from flowopd_cli.models.base import FlowModel
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump
from flowopd_cli.train.guards import Fault, Guard, finite
from flowopd_cli.train.meter import Meter, means
from flowopd_cli.train.objectives import Objective
from flowopd_cli.train.optimizers import make_optimizer

MicroBatches = Sequence[StepBatch] | Generator[StepBatch, Loss, None]
Experience = Callable[[int], tuple[Iterable[MicroBatches], Mapping[str, float]]]


@dataclass(frozen=True)
class FitSettings:
    """Numbers of the loop; one iteration is one rollout and its optimizer steps."""

    iterations: int
    lr: float
    optimizer: str = "adamw"
    warmup: int = 0
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9
    ema_every: int = 1
    checkpoint_every: int = 50
    skip_limit: int = 5


@runtime_checkable
class Recorder(Protocol):
    """What the loop reports while it runs; every process calls it alike."""

    def row(self, row: dict[str, float]) -> None:
        """The metrics of a finished iteration."""
        ...

    def checkpoint(self, iteration: int, state: TrainState) -> None:
        """Save the state."""
        ...

    def sample(self, iteration: int, *, last: bool, resumed: bool = False) -> None:
        """Draw sample pictures if they are due; of a resumed iteration only if they are missing."""
        ...

    def fault(self, iteration: int, fault: Fault, dump: Dump | None) -> str:
        """An optimizer step that is not taken; the last one before the training ends has a ``dump``.

        Returns a clause for the error message that says where the dump is.
        """
        ...


class NullRecorder:
    """A :class:`Recorder` that does nothing."""

    def row(self, row: dict[str, float]) -> None:
        """Nothing."""

    def checkpoint(self, iteration: int, state: TrainState) -> None:
        """Nothing."""

    def sample(self, iteration: int, *, last: bool, resumed: bool = False) -> None:
        """Nothing."""

    def fault(self, iteration: int, fault: Fault, dump: Dump | None) -> str:
        """Nothing."""
        return "not saved"


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

    ``experience(i)`` returns the optimizer steps of iteration i, each a list of micro-batches, and figures to log that
    are read after the last step. A generator of micro-batches is sent the loss of each before it yields the next.
    The gradient of an optimizer step is that of (sum of totals) / (sum of counts) over its micro-batches and over all
    processes, so neither split can change it; a step whose gradient is not finite is skipped. If the training ends
    early, the last finished iteration is in a checkpoint, unless the next one has already changed the policy.

    Raises:
        Interrupted: the user asked to stop.
        DivergedError: ``settings.skip_limit`` optimizer steps in a row were skipped.
    """
    parameters = model.adapters.trainable()
    optimizer = make_optimizer(settings.optimizer, parameters.values(), settings.lr, settings.weight_decay)
    state = state or TrainState.fresh(model)
    learner = _Learner(model, optimizer, [*parameters.values()], objective, settings, recorder or NullRecorder())
    learner.saved = state.iteration
    with _stop_requests() as stop:
        learner.begin(state)
        while state.iteration < settings.iterations:
            with learner.rescuing(state):
                row = learner.iteration(experience, state)
            learner.recorder.row(row)
            last = state.iteration == settings.iterations
            with learner.rescuing(state):
                learner.recorder.sample(state.iteration, last=last)
                stopping = any(GROUP.gather(stop())) and not last
            if last or stopping or state.iteration % settings.checkpoint_every == 0:
                learner.checkpoint(state)
            if stopping:
                raise Interrupted(f"stopped after iteration {state.iteration} of {settings.iterations}")
    return state


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

    def checkpoint(self, state: TrainState) -> None:
        """Save the state; all processes learn whether that worked."""
        with GROUP.together():
            self._save(state)

    def _save(self, state: TrainState) -> None:
        self.saved = state.iteration
        state.capture(self.model, self.optimizer)
        self.recorder.checkpoint(state.iteration, state)

    def begin(self, state: TrainState) -> None:
        """Restore the state, and draw the sample pictures that were due there and are missing."""
        state.restore(self.model, self.optimizer)
        if state.iteration:
            last = state.iteration == self.settings.iterations
            self.recorder.sample(state.iteration, last=last, resumed=True)

    @contextmanager
    def rescuing(self, state: TrainState) -> Iterator[None]:
        """Save the finished iterations if the block fails, unless an optimizer step has changed the policy since."""
        step = state.step
        try:
            yield
        except Exception:
            if state.step == step and state.iteration > self.saved:
                with suppress(Exception):
                    self._save(state)
            raise

    def iteration(self, experience: Experience, state: TrainState) -> dict[str, float]:
        """One rollout and its optimizer steps; advances ``state``'s counters and returns the row to log."""
        started, meter, norm, skipped = time.perf_counter(), Meter(), 0.0, 0
        updates, figures = experience(state.iteration)
        collected = time.perf_counter()
        for micro_batches in self._counted(updates, state):
            if not self._gradients(micro_batches, meter, state):
                skipped += 1
                continue
            norm = self._update(state.step)
            state.step += 1
            if self.settings.ema_decay and state.step % self.settings.ema_every == 0:
                self.model.adapters.ema("policy", "policy_ema", _ema_decay(self.settings, state.step))
        state.iteration += 1
        row = {
            "iteration": state.iteration,
            "step": state.step,
            **figures,
            **means(GROUP.gather(meter)),
            "grad_norm": norm,
            "skipped": skipped,
        }
        return row | {"seconds_collect": collected - started, "seconds_learn": time.perf_counter() - collected}

    def _counted(self, updates: Iterable[MicroBatches], state: TrainState) -> Iterator[MicroBatches]:
        """The same optimizer steps; an iteration without any counts as a skipped one."""
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
        """Accumulate d(sum of totals) / (sum of counts) into ``.grad`` over micro-batches and processes.

        A process without a row in this optimizer step takes part in the sums with nothing. False: they are not finite.
        """
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
        fault = next(filter(None, faults), None)
        if fault is None and sum(counts):
            self._sum(sum(counts), learned=count > 0)
            if not finite([p.grad for p in self.parameters if p.grad is not None]):
                fault = Fault("gradient")
        if fault is not None or not sum(counts):
            self.optimizer.zero_grad(set_to_none=True)
        state.skipped = 0 if fault is None else state.skipped + 1
        if fault is not None:
            self._skip(fault, guard, state)
            return False
        meter.merge(accepted)
        return sum(counts) > 0

    def _skip(self, fault: Fault, guard: Guard, state: TrainState) -> None:
        """Report an optimizer step that is not taken; too many in a row end the training."""
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
        """All-reduce the gradients as one flat tensor and divide by ``count``."""
        if learned and any(parameter.grad is None for parameter in self.parameters):
            raise RuntimeError(
                "a policy parameter got no gradient: an adapter was switched between forward and backward"
            )
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = GROUP.sum(torch.cat([gradient.flatten() for gradient in gradients])).div_(count)
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def _update(self, step: int) -> float:
        """One clipped AdamW step; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * min(1.0, (step + 1) / (self.settings.warmup + 1))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


def _after(batches: Iterator[StepBatch], loss: Loss | None) -> StepBatch | None:
    """The next micro-batch; a generator is sent the loss of the one before. ``None`` at the end."""
    try:
        return batches.send(loss) if isinstance(batches, Generator) else next(batches)
    except StopIteration:
        return None


def _ema_decay(settings: FitSettings, step: int) -> float:
    """``min((1 + n) / (10 + n), decay)`` (Flow-GRPO's warm-up of the average)."""
    return min((1 + step) / (10 + step), settings.ema_decay)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM asks the loop to stop after this iteration, the second one stops at once."""
    requests: list[int] = []

    def request_stop(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals stay with whoever owns them
        before = {}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
