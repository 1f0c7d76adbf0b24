"""``flowopd demo``: the six commands' own stages in a chain on the toy world, a table and a report at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli import report
from flowopd_cli.card import results as results_of
from flowopd_cli.progress import Progress
from flowopd_cli.run import RunDir

OBJECTIVES = ("geneval", "ocr", "quality")
TITLE = "Three specialists, one generalist"
QUICK = {
    "teacher": ("train.iterations=12",),
    "distill": ("train.iterations=12",),
    "eval": ("eval.images=1", "eval.limit=72"),
}
Execute = Callable[[recipes.Recipe, RunDir, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Demo:
    """Where the demo writes and how it runs its stages."""

    out: Path
    execute: Execute
    progress: Progress
    seed: int = 0
    quick: bool = False

    def stage(self, name: str, recipe: str, *overrides: str, **values: Any) -> RunDir:
        """Run one shipped recipe into ``out/name``."""
        stage = recipe.split("-")[0].removeprefix("toy/")
        fast = QUICK.get("teacher" if recipe == "toy/grpo-mix" else stage, ()) if self.quick else ()
        built = recipes.load(recipes.find(recipe), overrides=[*fast, f"seed={self.seed}", *overrides], **values)
        run = RunDir.create(self.out / name, built.stage)
        self.execute(built, run, self.progress)
        return run


def run(demo: Demo, *, baseline: bool = False, ablation: bool = False) -> dict[str, Any]:
    """Base, three teachers, merge, distill with MAR, evaluation of all on held-out prompts; the report's path.

    ``baseline`` adds one GRPO run on all rewards with as many optimizer steps as the three teachers together,
    ``ablation`` a student that is distilled without the anchor.
    """
    teachers = {task: demo.stage(f"teacher-{task}", f"toy/teacher-{task}") for task in OBJECTIVES}
    models: dict[str, RunDir | None] = {"base": None}
    models |= {f"teacher-{task}": run for task, run in teachers.items()}
    if baseline:
        models["grpo-mix"] = demo.stage("grpo-mix", "toy/grpo-mix", *equal_steps(demo, teachers))
    merged = demo.stage("merge", "toy/merge", adapters=[str(run.path) for run in teachers.values()])
    models["merge"] = merged
    models["student"] = demo.stage("student", "toy/distill", **lineage(merged, teachers))
    if ablation:
        models["student-no-anchor"] = demo.stage(
            "student-no-anchor", "toy/distill", "anchor.beta=0", **lineage(merged, teachers)
        )
    return conclude(demo, models, [run for run in models.values() if run is not None])


def lineage(merged: RunDir, teachers: Mapping[str, RunDir]) -> dict[str, Any]:
    """The distillation's references: it starts from the merge, is taught by two teachers, anchored by the third."""
    return {
        "adapter__init": str(merged.path),
        "routing__geneval__ref": str(teachers["geneval"].path),
        "routing__ocr__ref": str(teachers["ocr"].path),
        "anchor__ref": str(teachers["quality"].path),
    }


def equal_steps(demo: Demo, teachers: Mapping[str, RunDir]) -> list[str]:
    """GRPO-mix gets as many iterations as the three teachers together."""
    total = sum(run.recipe().train.iterations for run in teachers.values())  # type: ignore[union-attr]
    return [f"train.iterations={total}"]


def conclude(demo: Demo, models: Mapping[str, RunDir | None], runs: list[RunDir]) -> dict[str, Any]:
    """Evaluate every model on the same prompts and seeds, print the table, write the report."""
    entries = []
    for name, trained in models.items():
        adapter = None if trained is None else str(trained.path)
        entries.append(report.ModelEntry(name, demo.stage(f"eval-{name}", "toy/eval", adapter=adapter)))
    results = {entry.name: results_of(entry.evaluation) for entry in entries}
    path = demo.out / "report.html"
    lead = f"flowopd demo on the embedded toy world, seed {demo.seed}{', quick' if demo.quick else ''}."
    path.write_text(report.build(TITLE, lead, entries, runs), encoding="utf-8")
    columns = ("model", *OBJECTIVES, "average")
    rows = [
        (name, *(f"{r[s]['mean']:.3f} ± {r[s]['stderr']:.3f}" for s in OBJECTIVES), f"{average(r):.3f}")
        for name, r in results.items()
    ]
    demo.progress.table("Held-out results", columns, rows)
    return {"report": str(path), "models": results}


def average(result: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the suites' means."""
    return sum(result[suite]["mean"] for suite in OBJECTIVES) / len(OBJECTIVES)
