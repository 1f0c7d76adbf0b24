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
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.table import NUMBERS, Cell
from flowopd_cli.runs.evaluations import by_guidance
from flowopd_cli.runs.layout import REPORT
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
    """The output folder and the flags of the demo.

    ``baseline`` adds one GRPO run on all rewards with as many optimizer steps as the three teachers together,
    ``ablation`` a student that is distilled without the anchor.
    """

    out: Path
    seed: int = 0
    quick: bool = False
    baseline: bool = False
    ablation: bool = False

    def command(self) -> str:
        """The command line that runs this demo, or resumes it."""
        flags = [f" --{name}" for name in ("quick", "baseline", "ablation") if getattr(self, name)]
        seed = f" --seed {self.seed}" if self.seed else ""
        return f"flowopd demo --out {shlex.quote(str(self.out))}{seed}{''.join(flags)}"

    def run(self, execute: Execute, progress: Progress) -> dict[str, Any]:
        """Train three teachers, merge, distill with the anchor, evaluate each and the base; return the report's path.

        Stages that an earlier call with the same settings finished are reused; an unfinished one is resumed.

        Raises :class:`ArtifactError`: ``out`` holds something else, or stages of other settings.
        Raises :class:`MissingDependency`: a stage needs a package that is not installed.
        """
        self._check_folder()
        stages = self.stages()
        self._check(stages)
        runs = {name: self._stage(name, recipe, execute, progress) for name, recipe in stages.items()}
        models = {"base": None, **{name: runs[name] for name in self.trained()}}
        entries = [Entry(name, run, by_guidance(runs[f"eval-{name}"])[0]) for name, run in models.items()]
        lead = f"flowopd demo on the embedded toy world, seed {self.seed}{', quick' if self.quick else ''}."
        report.write_comparison(entries, self.out / REPORT, TITLE, lead)
        progress.table("Held-out results", ("model", *OBJECTIVES, "average"), list(map(_row, entries)))
        return {"report": str(self.out / REPORT), "models": {entry.name: entry.results for entry in entries}}

    def trained(self) -> list[str]:
        """The stages that make a model, in order."""
        teachers = [f"teacher-{task}" for task in OBJECTIVES]
        mixture = ["grpo-mix"] if self.baseline else []
        return [*teachers, *mixture, "merge", "student", *(["student-no-anchor"] if self.ablation else [])]

    def stages(self) -> dict[str, recipes.Recipe]:
        """The recipe of every stage by the name of its directory, in the order in which they run."""
        out = {name: str(self.out / name) for name in self.trained()}
        stages = {f"teacher-{task}": self._recipe(f"toy/teacher-{task}") for task in OBJECTIVES}
        if self.baseline:
            total = sum(recipe.train.iterations for recipe in stages.values())  # type: ignore[union-attr]
            stages["grpo-mix"] = self._recipe("toy/grpo-mix", f"train.iterations={total}")
        stages["merge"] = self._recipe("toy/merge", adapters=[out[f"teacher-{task}"] for task in OBJECTIVES])
        parents = {
            "adapter__init": out["merge"],
            "routing__geneval__ref": out["teacher-geneval"],
            "routing__ocr__ref": out["teacher-ocr"],
            "anchor__ref": out["teacher-quality"],
        }
        stages["student"] = self._recipe("toy/distill", **parents)
        if self.ablation:
            stages["student-no-anchor"] = self._recipe("toy/distill", "anchor.beta=0", **parents)
        stages["eval-base"] = self._recipe("toy/eval")
        return stages | {f"eval-{name}": self._recipe("toy/eval", adapter=path) for name, path in out.items()}

    def _recipe(self, name: str, *overrides: str, **values: Any) -> recipes.Recipe:
        stage = name.split("-")[0].removeprefix("toy/")
        quick = QUICK.get("teacher" if stage == "grpo" else stage, ()) if self.quick else ()
        tree = recipes.read(recipes.find(name))
        for field, value in values.items():
            recipes.assign(tree, field.replace("__", "."), value)
        return recipes.build(tree, overrides=[*quick, f"seed={self.seed}", *overrides], where=name)

    def _check(self, stages: Mapping[str, recipes.Recipe]) -> None:
        """Check early for causes of a later failure: runs with other settings, missing packages, unknown names."""
        rewards, suites = {}, set()
        for name, plan in ((name, Plan.of(recipe)) for name, recipe in stages.items()):
            path = self.out / name
            if is_run(path) and RunDir.open(path, writes=False).manifest().recipe_sha != recipes.digest(plan.recipe):
                raise ArtifactError(
                    f"{path}: was made with other settings (--seed, --quick, the spelling of --out or the "
                    "version): repeat those, or give --out a fresh name"
                )
            check_names(plan.recipe)
            rewards |= {str(spec): spec for spec in getattr(plan.recipe, "rewards", ())}
            suites |= set(plan.recipe.eval.suites) if isinstance(plan.recipe, recipes.EvalRecipe) else set()
        for spec in rewards.values():
            registry.REWARDS.load(spec.name)(**spec.options)
        for name in suites:
            registry.SUITES.load(name)().reward()

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ArtifactError(f"{self.out}: is a file; --out names a directory")
        trained = replace(self, baseline=True, ablation=True).trained()
        names = {REPORT, *NUMBERS, *trained, *(f"eval-{name}" for name in ("base", *trained))}
        for path in sorted(self.out.iterdir()) if self.out.is_dir() else ():
            if path.name not in names:
                raise ArtifactError(
                    f"{self.out}: is not empty, and {path.name} is not part of a demo; give --out a fresh name, or "
                    "leave it out"
                )

    def _stage(self, name: str, recipe: recipes.Recipe, execute: Execute, progress: Progress) -> RunDir:
        """The finished run of one stage: new, resumed, or reused."""
        path, resume = self.out / name, is_run(self.out / name)
        run = RunDir.open(path) if resume else RunDir.create(path, recipe.stage)
        if resume and run.manifest().status == "done":
            progress.note(f"{name}: finished earlier")
        else:
            execute(Plan.of(recipe), run, progress, resume=resume)  # planned now: its adapters exist by now
        return run


def _row(entry: Entry) -> tuple[str, ...]:
    cells = [Cell(entry.results[suite]["mean"], entry.results[suite]["stderr"]) for suite in OBJECTIVES]
    average = Cell(sum(cell.mean for cell in cells) / len(cells))
    return entry.name, *(f"{cell.text} {cell.error}".strip() for cell in (*cells, average))
