"""Records a training in its run directory: metrics, warnings, checkpoints, the best of them, sample pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import BestSpec, TrainSpec
from flowopd_cli.runs.checkpoints import best_step
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.json_files import plain
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.text import suggest
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump, Fault
from flowopd_cli.train.health import HealthMonitor
from flowopd_cli.train.stopping import StopRule


@dataclass
class RunRecorder:
    """The :class:`~flowopd_cli.train.recorder.Recorder` that writes to a run directory.

    ``export`` writes the policy of an optimizer step into ``best/``, before the checkpoint is saved: a run that is
    killed between the two repeats the step. ``draw_samples`` draws the sample pictures of an iteration, ``observe``
    returns the figures of a watch after an optimizer step; all processes take part.
    """

    run: RunDir
    progress: Progress
    train: TrainSpec
    export: Callable[[int], None]
    draw_samples: Callable[[int], None]
    observe: Callable[[int], Mapping[str, float]] | None = None
    _health: HealthMonitor = field(default_factory=HealthMonitor)
    _metric_checked: bool = False

    def __post_init__(self) -> None:
        self._stop = None if self.train.stop is None else StopRule(**self.train.stop.model_dump())

    def resume(self) -> None:
        """Continue from the run's logged rows, and prune checkpoints as an uninterrupted run would have."""
        if self.run.writes:
            self._check_metrics(self.run.rows())
            for row in self.run.rows():
                self._health.observe(row)
                if self._stop is not None:
                    self._stop.observe(row)
            self.run.checkpoints.prune(self.train.keep_checkpoints, [self.best()], self._regular)
            if self._stop is not None and self._stop.reason:
                self.progress.note(f"{self._stop.reason}; to go further: --set train.stop=null")

    def figures(self) -> dict[str, Any]:
        """The last logged value of each figure and the best checkpoint's step, if the recipe asks for the best."""
        figures: dict[str, Any] = {}
        for row in self.run.rows() if self.run.writes else ():
            figures |= {name: value for name, value in row.items() if _is_figure(name)}
        best = self.best() if self.run.writes else None
        return figures if best is None else {**figures, "best_iteration": best}

    def row(self, row: dict[str, float]) -> None:
        """Log the row, and warn where it looks wrong."""
        if not self._metric_checked:
            self._metric_checked = bool(row.get("step", 1))  # before the first step the objective has no figures
            self._check_metrics([*self.run.rows(), row], "" if self._metric_checked else "watch/")
        self.run.log(row)
        self.progress.step(row)
        if self._stop is not None and self._stop.reason is None:
            self._stop.observe(row)
            if self._stop.reason:
                self.run.log_event(int(row["iteration"]), "stopped", self._stop.reason)
                self.progress.note(f"iteration {row['iteration']}: {self._stop.reason}")
        for text in self._health.observe(row):
            self.run.log_event(int(row["iteration"]), "warning", text)
            self.progress.note(f"iteration {row['iteration']}: warning: {text}")

    def ends(self) -> bool:
        """Whether ``train.stop`` ends the training; only the first process knows all rows of a resumed run."""
        return self.run.writes and self._stop is not None and self._stop.reason is not None

    def best(self) -> int | None:
        """The best checkpoint, by ``train.keep_best`` and ``train.stop``."""
        return self._best(self.run.checkpoints.steps())

    def watch(self, iteration: int, step: int, *, last: bool) -> Mapping[str, float]:
        """Watch every ``train.watch_every`` iterations, before the first and after the last one."""
        if self.observe is None or not (last or iteration % self.train.watch_every == 0):
            return {}
        return self.observe(step)

    def fault(self, iteration: int, fault: Fault, dump: Dump | None) -> str:
        """Log the skipped step, and save the dump under ``faults/``."""
        self.run.log_event(iteration, "skipped", str(fault), prompts=list(fault.prompts))
        self.progress.note(f"iteration {iteration}: optimizer step skipped: {fault}")
        if dump is not None:
            self.run.save_fault(dump.iteration, dump.save)
        return f"look at it with: flowopd runs replay {shlex.quote(str(self.run.path))}"

    def checkpoint(self, iteration: int, state: TrainState) -> None:
        """Save a checkpoint, and export the policy where it is the best so far."""
        best = self._best([*self.run.checkpoints.steps(), iteration]) if self.run.writes else None
        if best == iteration:
            self.export(state.step)
        self.run.save_checkpoint(iteration, state.save, self.train.keep_checkpoints, best, self._regular)

    def sample(self, iteration: int, *, last: bool, resumed: bool = False) -> None:
        """Draw sample pictures every ``train.sample_every`` iterations and after the last one."""
        every = self.train.sample_every
        if not every or not (last or iteration % every == 0):
            return
        has_sample = resumed and (not self.run.writes or self.run.sample_file(iteration).is_file())
        if not all(GROUP.gather(has_sample)):
            self.draw_samples(iteration)

    def _regular(self, step: int) -> bool:
        """Whether an uninterrupted run has this checkpoint; any other was saved by a stopped run."""
        return step % self.train.checkpoint_every == 0 or step == self.train.iterations

    def _best(self, steps: Sequence[int]) -> int | None:
        keep, stop = self.train.keep_best, self._stop
        candidates = [step for step in steps if self._regular(step) and (stop is None or stop.allows(step))]
        if keep is None and stop is not None:
            if stop.bounded:
                return max(candidates, default=None)
            keep = BestSpec(metric=stop.metric, direction=stop.direction)
        return keep and best_step(self.run.rows(), candidates, keep, self.train.checkpoint_every)

    def _check_metrics(self, rows: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
        """Refuse metrics that begin with ``prefix`` and that no row has."""
        names = list(dict.fromkeys(name for row in rows for name in plain(row)))
        for section, spec in (("keep_best", self.train.keep_best), ("stop", self.train.stop)):
            if spec is not None and names and spec.metric.startswith(prefix) and spec.metric not in names:
                raise RecipeError(
                    f"train.{section}.metric {spec.metric}: this run logs no such metric{suggest(spec.metric, names)}; "
                    f"it logs {', '.join(name for name in names if _is_figure(name))}"
                )


def _is_figure(name: str) -> bool:
    return name not in {"iteration", "step"} and not name.startswith("seconds")
