"""The models of a comparison: runs and evaluations, matched by the digests of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import BASE, Evaluation, evaluation, fullest
from flowopd_cli.runs.manifest import Parent, is_run
from flowopd_cli.runs.run import RunDir


@dataclass(frozen=True)
class Entry:
    """A model's name, its run, its evaluation, and whether the evaluation is comparable with the others."""

    name: str
    run: RunDir | None = None
    evaluation: Evaluation | None = None
    comparable: bool = True

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """``{suite: {mean, stderr, n, exact}}``, empty for a model without an evaluation."""
        return self.evaluation.suites if self.evaluation else {}


def collect(paths: Sequence[Path]) -> list[Entry]:
    """The models behind the runs at ``paths``, in their order, the base first.

    An evaluation stands for its model; evaluations of other runs are among ``paths`` or in the same folders.

    Raises :class:`ArtifactError`: a path is no run, or an evaluation is unfinished or damaged.
    """
    runs = [RunDir.open(path, writes=False) for path in dict.fromkeys(path.resolve() for path in paths)]
    named = {run.path: _evaluation(run) for run in runs if isinstance(run.recipe(), EvalRecipe)}
    others = [one for one in _neighbours(runs) if one.run.path not in named]
    entries: list[Entry] = []
    for run in runs:
        if run.path in named:
            entries.append(_scored_model(run, named[run.path]))
        else:
            digest = _digest(run.path)
            scores = [one for one in (*named.values(), *others) if digest and one.scored == digest]
            entries.append(Entry(run.path.name, run, fullest(scores)))
    bases = [one for one in others if one.scored is None]
    return _mark_comparable(_unique(_with_base(entries, bases)))


def locate(run: RunDir, parent: Parent) -> Path | None:
    """A parent's run at its recorded path, or in the folder of ``run`` if both were moved."""
    with suppress(FlowOPDError, OSError):
        reference = AdapterRef.parse(parent.ref)
        for path in (Path(reference.location), run.path.resolve().parent / Path(reference.location).name):
            if reference.location and reference.kind != "hub" and is_run(path):
                return path
    return None


def _evaluation(run: RunDir) -> Evaluation:
    scores = evaluation(run)
    if scores is None or not scores.suites:
        raise ArtifactError(f"{run.path}: an evaluation without results; finish it first")
    return scores


def _neighbours(runs: Sequence[RunDir]) -> Iterator[Evaluation]:
    """The finished evaluations in the folders of the runs; unreadable ones are skipped."""
    for folder in dict.fromkeys(run.path.parent for run in runs):
        for path in sorted(folder.iterdir()):
            with suppress(FlowOPDError, OSError):
                run = RunDir(path, writes=False)
                if is_run(path) and run.manifest().status == "done" and run.manifest().parents:
                    yield _evaluation(run)


def _digest(path: Path) -> str | None:
    with suppress(FlowOPDError, OSError):
        return AdapterRef.parse(str(path)).resolve().sha256
    return None


def _scored_model(run: RunDir, scores: Evaluation) -> Entry:
    """The model that ``run`` evaluated, with its run if that is found with the same weights."""
    parents = run.manifest().parents
    if not parents:
        return Entry(run.path.name, None, scores)
    if scores.scored is None:
        return Entry(BASE, None, scores)
    path = locate(run, parents[0])
    if path is not None and _digest(path) == scores.scored:
        return Entry(path.name, RunDir(path, writes=False), scores)
    return Entry(Path(parents[0].ref).name or parents[0].ref, None, scores)


def _with_base(entries: Sequence[Entry], bases: Sequence[Evaluation]) -> list[Entry]:
    """Put the base first: a named one, else the evaluation in ``bases`` that shares most suites with the others."""
    first = [entry for entry in entries if entry.name == BASE and entry.evaluation]
    rest = [entry for entry in entries if entry not in first]
    if not first and bases:
        others = [entry.evaluation for entry in rest if entry.evaluation]
        shared = [sum(len(base.shared(other)) for other in others) for base in bases]
        first = [Entry(BASE, None, bases[shared.index(max(shared))])] if any(shared) else []
    return [*first, *rest]


def _unique(entries: Sequence[Entry]) -> list[Entry]:
    unique: dict[tuple[Path | None, Path | None], Entry] = {}
    for entry in entries:
        key = (entry.run.path.resolve() if entry.run else None, entry.evaluation.run.path if entry.evaluation else None)
        used = {other.name for other in unique.values()}
        names = (entry.name if n == 1 else f"{entry.name} ({n})" for n in count(1))
        unique.setdefault(key, replace(entry, name=next(name for name in names if name not in used)))
    return list(unique.values())


def _mark_comparable(entries: Sequence[Entry]) -> list[Entry]:
    """Mark a group of mutually comparable evaluations, starting with those comparable with most others.

    Comparability is not transitive: an evaluation without a judge's name is comparable with two of different judges.
    """
    evaluations = [entry.evaluation for entry in entries if entry.evaluation]
    group: list[Evaluation] = []
    for one in sorted(evaluations, key=lambda one: -sum(_compare(one, other) for other in evaluations)):
        group += [one] if all(_compare(one, other) for other in group) else []
    return [replace(entry, comparable=entry.evaluation is None or entry.evaluation in group) for entry in entries]


def _compare(one: Evaluation, two: Evaluation) -> bool:
    return one.protocol == two.protocol and set(one.shared(two)) == one.results.keys() & two.results.keys()
