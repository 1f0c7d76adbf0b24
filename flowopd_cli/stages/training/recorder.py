"""Records a training in its run directory: metrics, warnings, checkpoints, the best of them, sample pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import TrainSpec
from flowopd_cli.runs.checkpoints import best_step
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.json_files import plain
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.text import suggest
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump, Fault
from flowopd_cli.train.health import HealthMonitor


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

    def resume(self) -> None:
        """Continue from the run's logged rows, and prune checkpoints as an uninterrupted run would have."""
        if self.run.writes:
            self._check_best(self.run.rows())
            best = self._best(self.run.checkpoints.steps())
            self.run.checkpoints.prune(self.train.keep_checkpoints, [best], self._regular)
            for row in self.run.rows():
                self._health.observe(row)

    def figures(self) -> dict[str, Any]:
        """The last logged value of each figure and, with ``train.keep_best``, the best checkpoint's step."""
        figures: dict[str, Any] = {}
        for row in self.run.rows() if self.run.writes else ():
            figures |= {name: value for name, value in row.items() if _is_figure(name)}
        best = self._best(self.run.checkpoints.steps()) if self.run.writes else None
        return figures if best is None else {**figures, "best_iteration": best}

    def row(self, row: dict[str, float]) -> None:
        """Log the row, and warn where it looks wrong."""
        if not self._metric_checked and row.get("step", 1):  # before the first step the objective has no figures
            self._check_best([*self.run.rows(), row])
            self._metric_checked = True
        self.run.log(row)
        self.progress.step(row)
        for text in self._health.observe(row):
            self.run.log_event(int(row["iteration"]), "warning", text)
            self.progress.note(f"iteration {row['iteration']}: warning: {text}")

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
        drawn = resumed and (not self.run.writes or self.run.sample_file(iteration).is_file())
        if not all(GROUP.gather(drawn)):
            self.draw_samples(iteration)

    def _regular(self, step: int) -> bool:
        """Whether an uninterrupted run has this checkpoint; any other was saved by a stopped run."""
        return step % self.train.checkpoint_every == 0 or step == self.train.iterations

    def _best(self, steps: Sequence[int]) -> int | None:
        keep = self.train.keep_best
        if keep is None:
            return None
        return best_step(self.run.rows(), filter(self._regular, steps), keep, self.train.checkpoint_every)

    def _check_best(self, rows: Sequence[Mapping[str, Any]]) -> None:
        keep, names = self.train.keep_best, list(dict.fromkeys(name for row in rows for name in plain(row)))
        if keep is not None and names and keep.metric not in names:
            raise RecipeError(
                f"train.keep_best.metric {keep.metric}: this run logs no such metric{suggest(keep.metric, names)}; it "
                f"logs {', '.join(name for name in names if _is_figure(name))}"
            )


def _is_figure(name: str) -> bool:
    return name not in {"iteration", "step"} and not name.startswith("seconds")
