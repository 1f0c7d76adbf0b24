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
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.reports import report
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.page import Listing
from flowopd_cli.reports.table import NUMBERS, Cell
from flowopd_cli.runs.evaluations import AVERAGE, by_guidance
from flowopd_cli.runs.layout import REPORT
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress

OBJECTIVES = ("geneval", "ocr", "quality")
TITLE = "Three specialists, one generalist"
FOLDED = "student-folded"
GUIDANCE = 2.0  # of the second table, and of the teachers that student-folded learns from
CAPTION = "All at guidance 1, one forward a step; the teachers of the student too"
FOLDING = "Guidance folding: the same cost of a picture, halved"
QUICK = {
    "teacher": ("train.iterations=12",),
    "distill": ("train.iterations=12",),
    "eval": ("eval.images=1", "eval.limit=72"),
}
Execute = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Demo:
    """The output folder and the flags of the demo.

    ``baseline`` adds one GRPO run on all rewards; ``ablation`` adds a student that is distilled without the anchor, one
    whose teachers are guided, and base, teachers and student with guidance.
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
        lead = f"flowopd demo on the embedded toy world, seed {self.seed}{', quick' if self.quick else ''}. {CAPTION}."
        folding = [_folding_row(name, runs[f"eval-{name}{end}"]) for name in self.guided() for end in ("", "-guided")]
        if self.ablation:
            folding.append(_folding_row(FOLDED, runs[f"eval-{FOLDED}"]))
        columns = ("model", "guidance", "forwards a picture", *OBJECTIVES, AVERAGE)
        listing = Listing(FOLDING, columns, tuple(folding), frozenset(range(1, len(columns))))
        report.write_comparison(entries, self.out / REPORT, TITLE, lead, [listing] if folding else [])
        progress.table(f"Held-out results. {CAPTION}", ("model", *OBJECTIVES, AVERAGE), list(map(_row, entries)))
        if folding:
            progress.table(FOLDING, columns, folding)
        return {"report": str(self.out / REPORT), "models": {entry.name: entry.results for entry in entries}}

    def guided(self) -> list[str]:
        """The models that are evaluated with guidance too."""
        return ["base", *(f"teacher-{task}" for task in OBJECTIVES), "student"] if self.ablation else []

    def trained(self) -> list[str]:
        """The stages that make a model, in order."""
        teachers = [f"teacher-{task}" for task in OBJECTIVES]
        mixture = ["grpo-mix"] if self.baseline else []
        return [*teachers, *mixture, "merge", "student", *(["student-no-anchor", FOLDED] if self.ablation else [])]

    def stages(self) -> dict[str, recipes.Recipe]:
        """The recipe of every stage by the name of its directory, in the order in which they run."""
        out = {name: str(self.out / name) for name in self.trained()}
        stages = {f"teacher-{task}": self._recipe(f"toy/teacher-{task}") for task in OBJECTIVES}
        if self.baseline:
            stages["grpo-mix"] = self._recipe("toy/grpo-mix")
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
            guided = [f"routing.{task}.guidance={GUIDANCE:g}" for task in ("geneval", "ocr")]
            stages[FOLDED] = self._recipe("toy/distill", *guided, **parents)
        stages["eval-base"] = self._recipe("toy/eval")
        stages |= {f"eval-{name}": self._recipe("toy/eval", adapter=path) for name, path in out.items()}
        guidance, path = f"eval.guidance={GUIDANCE:g}", {"base": None, **out}
        return stages | {f"eval-{n}-guided": self._recipe("toy/eval", guidance, adapter=path[n]) for n in self.guided()}

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
        whole = replace(self, baseline=True, ablation=True)
        names = {REPORT, *NUMBERS, *whole.trained(), *(f"eval-{name}" for name in ("base", *whole.trained()))}
        names |= {f"eval-{name}-guided" for name in whole.guided()}
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
    return entry.name, *_cells(entry.results)


def _folding_row(name: str, run: RunDir) -> tuple[str, ...]:
    one, figures = by_guidance(run)[0], arithmetic(run.recipe())
    return name, f"{one.guidance:g}", str(figures["transformer forwards per picture"]), *_cells(one.results)


def _cells(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    cells = [Cell(results[suite]["mean"], results[suite]["stderr"]) for suite in OBJECTIVES]
    average = Cell(sum(cell.mean for cell in cells) / len(cells))
    return [f"{cell.text} {cell.error}".strip() for cell in (*cells, average)]
