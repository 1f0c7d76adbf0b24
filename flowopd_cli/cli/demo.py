"""``flowopd demo``: the stages in a chain on the toy base, with a table and a report at the end."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.check import check_names
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.study.grid import Node
from flowopd_cli.cli.study.pool import DONE, SUFFIXES, Pool, cpu_seconds
from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.reports import comparison, report
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.page import Listing
from flowopd_cli.reports.table import NUMBERS, Cell, table
from flowopd_cli.reports.verdict import verdict
from flowopd_cli.runs.evaluations import AVERAGE, by_guidance
from flowopd_cli.runs.layout import REPORT
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_leftover
from flowopd_cli.system.progress import Progress

# The objectives, each with the CPU-seconds of an iteration of its teacher, and those of the student, of a training on
# all rewards and of the start of a process: with one thread, two at a time. The last objective is the anchor's.
OBJECTIVES = {"geneval": 4.0, "ocr": 4.7, "preference": 3.78, "quality": 3.90}
STUDENT_SECONDS, ALL_REWARDS_SECONDS, START_SECONDS = 3.82, 4.7, 5.0
*ROUTED, ANCHOR = OBJECTIVES
TITLE = "Specialists and one generalist"
MERGE, STUDENT, UNANCHORED, FOLDED = "merge", "student", "student-no-anchor", "student-folded"
ALL_REWARDS, CHAIN = "all-rewards", "one-after-another"
BEST = f"{ALL_REWARDS}-best"  # its checkpoint that is the best on validation prompts
GUIDANCE = 2.0  # of the second table, and of the teachers that student-folded learns from
CAPTION = "All at guidance 1, one forward a step; the teachers of the student too"
COSTS = "CPU-seconds and pictures drawn are those of a model's training and of all that it was made from"
FOLDING = "Guidance folding: the same cost of a picture, halved"
INTERVAL = 20.0  # seconds between two lines on running trainings
QUICK = {  # five eighths of the pictures of an iteration, of teachers and student: the seconds above keep their ratios
    "teacher": ("train.iterations=8", "train.groups=5"),
    "distill": ("train.iterations=9", "train.groups=40"),
    "eval": ("eval.images=1", "eval.limit=48"),
}


@dataclass(frozen=True)
class Demo:
    """The output folder and the flags of the demo.

    ``baseline`` adds a training on all rewards at once and one on one reward after the other, at the cost of the
    student with its teachers; ``ablation`` adds a student that is distilled without the anchor, one whose teachers are
    guided, and base, teachers and student with guidance. ``jobs`` stages run at the same time.
    """

    out: Path
    seed: int = 0
    quick: bool = False
    baseline: bool = False
    ablation: bool = False
    jobs: int | None = None

    def command(self) -> str:
        """The command line that runs this demo, or resumes it."""
        flags = [f" --{name}" for name in ("quick", "baseline", "ablation") if getattr(self, name)]
        flags += [f" --{name} {value}" for name in ("seed", "jobs") if (value := getattr(self, name))]
        return f"flowopd demo --out {shlex.quote(str(self.out))}{''.join(flags)}"

    def run(self, progress: Progress) -> dict[str, Any]:
        """Train the teachers, merge, distill with the anchor, evaluate each and the base; write and show the results.

        Stages that an earlier call with the same settings finished are reused; an unfinished one is resumed. Returns
        the path of the ``report``, the results and ``costs`` of the ``models`` that were evaluated, the ``verdict`` on
        the student, and the ``faults`` of stages by name.

        Raises :class:`ArtifactError`: ``out`` holds something else, or stages of other settings.
        Raises :class:`MissingDependency`: a stage needs a package that is not installed.
        Raises :class:`Interrupted`: the user stopped it; the message has the resume command.
        """
        self._check_folder()
        nodes = {node.name: node for node in self.nodes()}
        with redirect_stdout(sys.stderr):
            self._check(nodes.values())
        pool = Pool(self.out, self.jobs or min(2, os.cpu_count() or 1), progress.note, interval=INTERVAL)
        outcomes = pool.run(list(nodes.values()), self.command())
        faults = {name: outcome for name, outcome in outcomes.items() if outcome != DONE}
        entries = [self._entry(nodes, name) for name in self.models() if f"eval-{name}" not in faults]
        return self._write(entries, faults, progress)

    def models(self) -> dict[str, str | None]:
        """The adapter below ``out`` of each model of the table; ``None`` is that of the base."""
        models = {"base": None} | {name: name for name in (*map(_teacher, OBJECTIVES), MERGE)}
        if self.baseline:
            models |= {ALL_REWARDS: ALL_REWARDS, BEST: f"{ALL_REWARDS}/best", CHAIN: f"{CHAIN}-{ANCHOR}"}
        return models | {name: name for name in (STUDENT, *((UNANCHORED, FOLDED) if self.ablation else ()))}

    def guided(self) -> list[str]:
        """The models that are evaluated with guidance too."""
        return ["base", *map(_teacher, OBJECTIVES), STUDENT] if self.ablation else []

    def nodes(self) -> list[Node]:
        """The stages by the name of their directories, parents first."""
        teachers = {task: self._node(_teacher(task), f"toy/{_teacher(task)}") for task in OBJECTIVES}
        nodes = [*teachers.values(), self._node(MERGE, "toy/merge", {"adapters": [*map(_teacher, OBJECTIVES)]})]
        parents = {"adapter.init": MERGE, "anchor.ref": _teacher(ANCHOR)}
        parents |= {f"routing.{task}.ref": _teacher(task) for task in ROUTED}
        nodes.append(student := self._node(STUDENT, "toy/distill", parents))
        if self.ablation:
            guided = [f"routing.{task}.guidance={GUIDANCE:g}" for task in ROUTED]
            nodes.append(self._node(UNANCHORED, "toy/distill", parents, ["anchor.beta=0"]))
            nodes.append(self._node(FOLDED, "toy/distill", parents, guided))
        if self.baseline:
            nodes += self._baselines(teachers, student)
        for name, adapter in self.models().items():
            refs = {"adapter": adapter} if adapter else {}
            nodes.append(self._node(f"eval-{name}", "toy/eval", refs))
            if name in self.guided():
                nodes.append(self._node(f"eval-{name}-guided", "toy/eval", refs, [f"eval.guidance={GUIDANCE:g}"]))
        return nodes

    def _baselines(self, teachers: Mapping[str, Node], student: Node) -> Iterator[Node]:
        """The trainings that the student is compared with, at the cost of teachers and student together."""
        spent = math.fsum(_train(teachers[task]).iterations * seconds for task, seconds in OBJECTIVES.items())
        total = spent + _train(student).iterations * STUDENT_SECONDS + (len(teachers) + 2) * START_SECONDS
        every = _train(self._node(ALL_REWARDS, f"toy/{ALL_REWARDS}")).checkpoint_every
        count = every * max(1, round((total - START_SECONDS) / ALL_REWARDS_SECONDS / every))
        yield self._node(ALL_REWARDS, f"toy/{ALL_REWARDS}", {}, [f"train.iterations={count}"])
        factor, before = (total - len(teachers) * START_SECONDS) / spent, dict[str, str]()
        for task, teacher in teachers.items():
            count = round(_train(teacher).iterations * factor)
            yield self._node(f"{CHAIN}-{task}", f"toy/{_teacher(task)}", before, [f"train.iterations={count}"])
            before = {"adapter.init": f"{CHAIN}-{task}"}

    def _node(
        self, name: str, recipe: str, refs: Mapping[str, str | list[str]] | None = None, overrides: Sequence[str] = ()
    ) -> Node:
        """A stage by a shipped recipe; ``refs`` are its parents, or adapters in them, by field."""
        tree, parents = recipes.read(recipes.find(recipe)), {}
        for field, ref in (refs or {}).items():
            recipes.assign(tree, field, ref)
            parents |= {text.partition("/")[0]: None for text in ([ref] if isinstance(ref, str) else ref)}
        quick = QUICK.get(tree["stage"], ()) if self.quick else ()
        built = recipes.build(tree, overrides=[*quick, f"seed={self.seed}", *overrides], where=recipe)
        return Node(name, name, "", built, tuple(parents))

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ArtifactError(f"{self.out}: is a file; --out names a directory")
        stages = replace(self, baseline=True, ablation=True).nodes()
        names = {REPORT, *NUMBERS, *(f"{node.name}{suffix}" for node in stages for suffix in ("", *SUFFIXES))}
        for path in sorted(self.out.iterdir()) if self.out.is_dir() else ():
            if path.name not in names and not is_leftover(path):
                raise ArtifactError(
                    f"{self.out}: is not empty, and {path.name} is not part of a demo; give --out a fresh name, or "
                    "leave it out"
                )

    def _check(self, nodes: Iterable[Node]) -> None:
        """Check early for causes of a later failure: runs with other settings, missing packages, unknown names."""
        rewards, suites = {}, set()
        for node in nodes:
            file, recipe = RunDir(self.out / node.name).recipe_file, Plan.of(node.recipe_in(self.out)).recipe
            if file.is_file() and recipes.digest(recipes.read(file)) != recipes.digest(recipe):
                raise ArtifactError(
                    f"{file.parent}: was made with other settings (--seed, --quick, the spelling of --out or the "
                    "version): repeat those, or give --out a fresh name"
                )
            check_names(recipe)
            rewards |= {str(spec): spec for spec in getattr(recipe, "rewards", ())}
            suites |= set(recipe.eval.suites) if isinstance(recipe, recipes.EvalRecipe) else set()
        for spec in rewards.values():
            registry.REWARDS.load(spec.name)(**spec.options)
        for name in suites:
            registry.SUITES.load(name)().reward()

    def _entry(self, nodes: Mapping[str, Node], name: str) -> Entry:
        """A model of the table: its results, and what it and its parents cost; CPU-seconds only if all are known."""
        run = RunDir.open(self.out / f"eval-{name}", writes=False)
        stages = {stage: RunDir(self.out / stage, writes=False) for stage in _ancestors(nodes, f"eval-{name}")}
        seconds = [cpu_seconds(stage.path) for stage in stages.values()]
        costs = {"CPU-seconds": math.fsum(map(math.fsum, seconds))} if all(seconds) else {}
        costs["pictures drawn"] = sum(map(_pictures, stages.values()))
        return Entry(name, stages.get(str(self.models()[name])), by_guidance(run)[0], costs=costs)

    def _write(self, entries: Sequence[Entry], faults: Mapping[str, str], progress: Progress) -> dict[str, Any]:
        rivals = [(_teacher(task), task) for task in OBJECTIVES]
        rivals += [(name, AVERAGE) for name in (MERGE, ALL_REWARDS, BEST, CHAIN)]
        sentence = verdict(STUDENT, rivals, {entry.name: entry.results for entry in entries})
        lead = f"flowopd demo on the embedded toy world, seed {self.seed}{', quick' if self.quick else ''}."
        guided = [(name, f"eval-{name}{end}") for name in self.guided() for end in ("", "-guided")]
        guided += [(FOLDED, f"eval-{FOLDED}")] if self.ablation else []
        folding = [_folding_row(name, RunDir.open(self.out / run)) for name, run in guided if run not in faults]
        columns = ("model", "guidance", "forwards a picture", *OBJECTIVES, AVERAGE)
        listings = [Listing(FOLDING, columns, tuple(folding), frozenset(range(1, len(columns))))] if folding else []
        target = self.out / REPORT
        page = comparison.page(entries, target, TITLE, f"{lead} {CAPTION}. {COSTS}.", listings, STUDENT)
        report.write_comparison(entries, target, replace(page, verdict=sentence))
        if shown := table(entries):
            rows = [(name, *map(_text, cells)) for name, cells in shown.rows]
            progress.table(f"Held-out results. {CAPTION}", ("model", *shown.columns), rows)
        if sentence:
            progress.note(sentence)
        if folding:
            progress.table(FOLDING, columns, folding)
        models, costs = ({entry.name: getattr(entry, key) for entry in entries} for key in ("results", "costs"))
        result = {"report": str(self.out / REPORT), "models": models, "costs": costs, "verdict": sentence}
        return result | {"faults": faults}


def _teacher(task: str) -> str:
    return f"teacher-{task}"


def _train(node: Node) -> recipes.TrainSpec:
    assert isinstance(node.recipe, recipes.TrainedRecipe)
    return node.recipe.train


def _ancestors(nodes: Mapping[str, Node], name: str) -> set[str]:
    parents = nodes[name].parents
    return set(parents).union(*(_ancestors(nodes, parent) for parent in parents))


def _pictures(run: RunDir) -> int:
    """The pictures that a training drew: those of its iterations, those drawn again, and those of watches."""
    recipe, rows = run.recipe(), run.rows()
    if not isinstance(recipe, recipes.TrainedRecipe):
        return 0
    pictures = recipe.train.groups * recipe.train.group_size * sum(row["iteration"] > 0 for row in rows)
    watched = recipe.watch.groups * recipe.watch.group_size * sum("seconds_watch" in row for row in rows)
    return pictures + watched + round(sum(row.get("refilled", 0) for row in rows))


def _folding_row(name: str, run: RunDir) -> tuple[str, ...]:
    one, figures = by_guidance(run)[0], arithmetic(run.recipe())
    results = table([Entry(name, None, one)])
    cells = results.rows[0][1] if results else ()
    return name, f"{one.guidance:g}", str(figures["transformer forwards per picture"]), *map(_text, cells)


def _text(cell: Cell | None) -> str:
    return "—" if cell is None else f"{cell.text} {cell.error}".strip()
