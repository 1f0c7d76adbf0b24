"""What a training stage leaves in its run: metrics, checkpoints, the best of them, its last figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import TrainSpec
from flowopd_cli.runs.checkpoints import best_step
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import plain
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.text import suggest
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump
from flowopd_cli.train.guards import Fault, Watch
from flowopd_cli.train.loop import Hooks


@dataclass(frozen=True)
class Keeper:
    """Metrics, checkpoints and sample pictures of a training stage go into its run directory.

    ``export`` writes the policy as it stands into ``best/``, before the checkpoint: a run that is killed between the
    two comes to the same step again.
    """

    run: RunDir
    progress: Progress
    train: TrainSpec
    export: Callable[[], None]
    watch: Watch = field(default_factory=Watch)
    _learned: list[bool] = field(default_factory=list)

    def hooks(self, sample: Callable[[int], None], *, resumed: bool) -> Hooks:
        """What the loop calls; of a run that goes on the checkpoints are those that an undisturbed one has here.

        Raises:
            RecipeError: a run that goes on has never logged the metric of ``train.keep_best``.
        """
        if resumed and self.run.writes:
            self._check_best(self.run.rows())
            best = self._best(self.run.checkpoints.steps())
            self.run.checkpoints.prune(self.train.keep_checkpoints, [best], self._regular)
            for row in self.run.rows():
                self.watch.observe(row)
        each = self._on_iteration, self._on_checkpoint, sample, self._on_fault, self._on_dump
        return Hooks(*each, self._is_sampled, sample_every=self.train.sample_every)

    def figures(self) -> dict[str, Any]:
        """Of each logged figure the last value, as the rows have them: a resumed run says what an undisturbed one does.

        With ``train.keep_best`` also the best checkpoint's step.
        """
        found: dict[str, Any] = {}
        for row in self.run.rows() if self.run.writes else ():
            found |= {name: value for name, value in row.items() if _is_figure(name)}
        best = self._best(self.run.checkpoints.steps()) if self.run.writes else None
        return found if best is None else {**found, "best_iteration": best}

    def _on_iteration(self, row: dict[str, float]) -> None:
        if not self._learned and row.get("step", 1):  # before that the objective has no figures
            self._check_best([*self.run.rows(), row])
            self._learned.append(True)
        self.run.log(row)
        self.progress.step(row)
        for text in self.watch.observe(row):
            self.run.log_event(int(row["iteration"]), "warning", text)
            self.progress.note(f"iteration {row['iteration']}: warning: {text}")

    def _on_fault(self, iteration: int, fault: Fault) -> None:
        self.run.log_event(iteration, "skipped", str(fault), prompts=list(fault.prompts))
        self.progress.note(f"iteration {iteration}: optimizer step skipped: {fault}")

    def _on_dump(self, dump: Dump) -> str:
        self.run.save_fault(dump.iteration, dump.save)
        return f"look at it with: flowopd runs replay {shlex.quote(str(self.run.path))}"

    def _on_checkpoint(self, iteration: int, state: TrainState) -> None:
        best = self._best([*self.run.checkpoints.steps(), iteration]) if self.run.writes else None
        if best == iteration:
            self.export()
        self.run.save_checkpoint(iteration, state.save, self.train.keep_checkpoints, best, self._regular)

    def _is_sampled(self, iteration: int) -> bool:
        """Whether this iteration's sample pictures are there, as far as this process has to know."""
        return not self.run.writes or self.run.sample_file(iteration).is_file()

    def _regular(self, step: int) -> bool:
        """Whether an undisturbed run has this checkpoint; another one is a stopped run's."""
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
