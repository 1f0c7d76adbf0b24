"""``flowopd demo``: the stages in a chain on the toy base, with a table and a report at the end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.check import check_names
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import ArtifactError
from flowopd_cli.reports import report
from flowopd_cli.reports.comparison import Comparison
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.table import NUMBERS
from flowopd_cli.runs.evaluations import evaluation
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress

OBJECTIVES = ("geneval", "ocr", "quality")
TITLE = "Three specialists, one generalist"
QUICK = {
    "teacher": ("train.iterations=12",),
    "distill": ("train.iterations=12",),
    "eval": ("eval.images=1", "eval.limit=72"),
}
Execute = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Demo:
    """Where the demo writes and what it has: each field is a flag of the command.

    ``baseline`` adds one GRPO run on all rewards with as many optimizer steps as the three teachers together,
    ``ablation`` a student that is distilled without the anchor.
    """

    out: Path
    seed: int = 0
    quick: bool = False
    baseline: bool = False
    ablation: bool = False

    def command(self) -> str:
        """The command line that runs this demo, or goes on with it."""
        flags = [name for name in ("quick", "baseline", "ablation") if getattr(self, name)]
        seed = f" --seed {self.seed}" if self.seed else ""
        return f"flowopd demo --out {shlex.quote(str(self.out))}{seed}" + "".join(f" --{flag}" for flag in flags)

    def run(self, execute: Execute, progress: Progress) -> dict[str, Any]:
        """Three teachers, merge, distillation with the anchor, evaluation of each and of the base; the report's path.

        Stages that an earlier call with the same settings finished are reused; an unfinished one is resumed.

        Raises:
            ArtifactError: ``out`` holds something else, or stages of other settings.
            MissingDependency: a stage needs a package that is not installed.
        """
        self._check_folder()
        stages = self.stages()
        self._check(stages)
        runs = {name: self._stage(name, recipe, execute, progress) for name, recipe in stages.items()}
        return self._conclude({name: run for name, run in runs.items() if name in self.trained()}, runs, progress)

    def trained(self) -> list[str]:
        """The stages that make a model, in order."""
        teachers = [f"teacher-{task}" for task in OBJECTIVES]
        mixture = ["grpo-mix"] if self.baseline else []
        return [*teachers, *mixture, "merge", "student", *(["student-no-anchor"] if self.ablation else [])]

    def stages(self) -> dict[str, recipes.Recipe]:
        """The recipe of every stage by the name of its directory, in the order in which they run."""
        teachers = {task: self._recipe(f"toy/teacher-{task}") for task in OBJECTIVES}
        built = {f"teacher-{task}": recipe for task, recipe in teachers.items()}
        if self.baseline:
            total = sum(recipe.train.iterations for recipe in teachers.values())  # type: ignore[union-attr]
            built["grpo-mix"] = self._recipe("toy/grpo-mix", f"train.iterations={total}")
        built["merge"] = self._recipe("toy/merge", adapters=[str(self.out / f"teacher-{t}") for t in OBJECTIVES])
        built["student"] = self._recipe("toy/distill", **self._lineage())
        if self.ablation:
            built["student-no-anchor"] = self._recipe("toy/distill", "anchor.beta=0", **self._lineage())
        built["eval-base"] = self._recipe("toy/eval")
        for name in self.trained():
            built[f"eval-{name}"] = self._recipe("toy/eval", adapter=str(self.out / name))
        return built

    def _recipe(self, name: str, *overrides: str, **values: Any) -> recipes.Recipe:
        stage = name.split("-")[0].removeprefix("toy/")
        fast = QUICK.get("teacher" if name == "toy/grpo-mix" else stage, ()) if self.quick else ()
        return recipes.load(recipes.find(name), overrides=[*fast, f"seed={self.seed}", *overrides], **values)

    def _lineage(self) -> dict[str, Any]:
        """The student starts from the merge, learns from two teachers and is anchored to the third."""
        return {
            "adapter__init": str(self.out / "merge"),
            "routing__geneval__ref": str(self.out / "teacher-geneval"),
            "routing__ocr__ref": str(self.out / "teacher-ocr"),
            "anchor__ref": str(self.out / "teacher-quality"),
        }

    def _check(self, stages: Mapping[str, recipes.Recipe]) -> None:
        """Find early what would stop a stage later: runs of other settings, absent packages, unknown names."""
        for name, recipe in stages.items():
            if is_run(self.out / name):
                self._check_settings(self.out / name, recipe)
        rewards, suites = {}, set()
        for plan in map(Plan.of, stages.values()):
            check_names(plan.recipe)
            rewards |= {str(spec): spec for spec in getattr(plan.recipe, "rewards", ())}
            suites |= set(plan.recipe.eval.suites) if isinstance(plan.recipe, recipes.EvalRecipe) else set()
        for spec in rewards.values():
            registry.REWARDS.load(spec.name)(**spec.options)
        for name in suites:
            registry.SUITES.load(name)().reward()

    def _check_folder(self) -> None:
        """Refuse a directory that holds anything else than a demo."""
        if self.out.exists() and not self.out.is_dir():
            raise ArtifactError(f"{self.out}: is a file; --out names a directory")
        trained = replace(self, baseline=True, ablation=True).trained()
        ours = {RunDir(self.out).report_file.name, *NUMBERS, *trained, *(f"eval-{name}" for name in ("base", *trained))}
        for path in sorted(self.out.iterdir()) if self.out.is_dir() else ():
            if path.name not in ours:
                raise ArtifactError(
                    f"{self.out}: is not empty, and {path.name} is no part of a demo; give --out a fresh name, or "
                    "leave it out"
                )

    def _check_settings(self, path: Path, recipe: recipes.Recipe) -> None:
        if RunDir.open(path, writes=False).manifest().recipe_sha != recipes.digest(Plan.of(recipe).recipe):
            raise ArtifactError(
                f"{path}: was made with other settings (a seed, --quick, --out written otherwise, another version): "
                "repeat those, or give --out a fresh name"
            )

    def _stage(self, name: str, recipe: recipes.Recipe, execute: Execute, progress: Progress) -> RunDir:
        """The finished run of one stage: made now, completed, or reused."""
        path = self.out / name
        if is_run(path) and RunDir.open(path).manifest().status == "done":
            progress.note(f"{name}: finished earlier")
            return RunDir.open(path)
        resume = is_run(path)
        run = RunDir.open(path) if resume else RunDir.create(path, recipe.stage)
        execute(Plan.of(recipe), run, progress, resume=resume)  # planned now: its adapters exist by now
        return run

    def _conclude(
        self, trained: Mapping[str, RunDir], runs: Mapping[str, RunDir], progress: Progress
    ) -> dict[str, Any]:
        """The table of every model on the same prompts and seeds, and the report."""
        models = {"base": None, **trained}
        entries = [Entry(name, run, evaluation(runs[f"eval-{name}"])) for name, run in models.items()]
        results = {entry.name: entry.results for entry in entries}
        lead = f"flowopd demo on the embedded toy world, seed {self.seed}{', quick' if self.quick else ''}."
        path = RunDir(self.out).report_file
        report.write_comparison(Comparison(entries, TITLE, lead), path)
        columns = ("model", *OBJECTIVES, "average")
        rows = [(name, *(cell(r[s]) for s in OBJECTIVES), f"{average(r):.3f}") for name, r in results.items()]
        progress.table("Held-out results", columns, rows)
        return {"report": str(path), "models": results}


def cell(figures: Mapping[str, Any]) -> str:
    """Mean and, where it is known, standard error."""
    return f"{figures['mean']:.3f}" + ("" if figures["stderr"] is None else f" ± {figures['stderr']:.3f}")


def average(result: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the suites' means."""
    return sum(result[suite]["mean"] for suite in OBJECTIVES) / len(OBJECTIVES)
