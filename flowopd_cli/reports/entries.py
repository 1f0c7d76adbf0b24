"""The models of a comparison: runs and evaluations, matched by the digests of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import BASE, Evaluation, evaluation, fullest
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir


@dataclass(frozen=True)
class Entry:
    """A model's name, the run that made it, its evaluation, and whether that compares with the others'."""

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

    An evaluation stands for the model that it scored; another run's evaluation is one of ``paths`` or lies beside it.

    Raises:
        ArtifactError: a path is no run, or an evaluation is unfinished or damaged.
    """
    runs = [RunDir.open(path, writes=False) for path in dict.fromkeys(path.resolve() for path in paths)]
    named = {run.path: _evaluation(run) for run in runs if isinstance(run.recipe(), EvalRecipe)}
    beside = [one for one in _beside(runs) if one.run.path not in named]
    entries: list[Entry] = []
    for run in runs:
        if run.path in named:
            entries.append(_scored_model(run, named[run.path]))
        else:
            digest = _digest(run)
            scores = [one for one in (*named.values(), *beside) if digest and one.scored == digest]
            entries.append(Entry(run.path.name, run, fullest(scores)))
    bases = [one for one in beside if one.scored is None]
    return _mark_comparable(_unique(_with_base(entries, bases)))


def _evaluation(run: RunDir) -> Evaluation:
    scores = evaluation(run)
    if scores is None or not scores.suites:
        raise ArtifactError(f"{run.path}: an evaluation without results; finish it first")
    return scores


def _beside(runs: Sequence[RunDir]) -> Iterable[Evaluation]:
    """The finished evaluations in the folders of the runs; unreadable ones are skipped."""
    for folder in dict.fromkeys(run.path.parent for run in runs):
        for path in sorted(folder.iterdir()):
            with suppress(FlowOPDError, OSError):
                run = RunDir(path, writes=False)
                if is_run(path) and run.manifest().status == "done" and run.manifest().parents:
                    scores = evaluation(run)
                    if scores is not None and scores.suites:
                        yield scores


def _digest(run: RunDir) -> str | None:
    with suppress(FlowOPDError):
        return AdapterRef.parse(str(run.path)).resolve().sha256
    return None


def _scored_model(run: RunDir, scores: Evaluation) -> Entry:
    """The model that ``run`` evaluated; its run is at the recorded place or beside ``run``, with the same weights."""
    parents = run.manifest().parents
    if not parents:
        return Entry(run.path.name, None, scores)
    if parents[0].sha256 is None:
        return Entry(BASE, None, scores)
    place = Path(parents[0].ref)
    for path in (place, run.path.parent / place.name):
        with suppress(FlowOPDError, OSError):
            trained = RunDir(path, writes=False)
            if is_run(path) and _digest(trained) == parents[0].sha256:
                return Entry(path.name, trained, scores)
    return Entry(place.name or parents[0].ref, None, scores)


def _with_base(entries: Sequence[Entry], bases: Sequence[Evaluation]) -> list[Entry]:
    """The base first: a named one, else the evaluation in ``bases`` that shares most suites with the others."""
    first = [entry for entry in entries if entry.name == BASE and entry.evaluation]
    rest = [entry for entry in entries if entry not in first]
    others = [entry.evaluation for entry in rest if entry.evaluation]
    if not first and others and bases:
        shared = [sum(len(base.shared(other)) for other in others) for base in bases]
        best = shared.index(max(shared))
        first = [Entry(BASE, None, bases[best])] if shared[best] else []
    return [*first, *rest]


def _unique(entries: Sequence[Entry]) -> list[Entry]:
    """One entry for each pair of model and evaluation, each with a different name."""
    unique: dict[tuple[Path | None, Path | None], Entry] = {}
    for entry in entries:
        key = (entry.run.path.resolve() if entry.run else None, entry.evaluation.run.path if entry.evaluation else None)
        taken = {other.name for other in unique.values()}
        names = (entry.name if n == 1 else f"{entry.name} ({n})" for n in count(1))
        unique.setdefault(key, replace(entry, name=next(name for name in names if name not in taken)))
    return list(unique.values())


def _mark_comparable(entries: Sequence[Entry]) -> list[Entry]:
    """Mark a group of evaluations in which all compare with each other, starting with those that compare with most.

    Comparing is not transitive: an evaluation without a judge's name compares with two of different judges.
    """
    evaluations = [entry.evaluation for entry in entries if entry.evaluation]
    group: list[Evaluation] = []
    for one in sorted(evaluations, key=lambda one: -sum(_compare(one, other) for other in evaluations)):
        group += [one] if all(_compare(one, other) for other in group) else []
    paths = {one.run.path for one in group}
    return [replace(e, comparable=e.evaluation is None or e.evaluation.run.path in paths) for e in entries]


def _compare(one: Evaluation, two: Evaluation) -> bool:
    """Whether protocol, versions and judges are the same."""
    return one.protocol == two.protocol and set(one.shared(two)) == one.results.keys() & two.results.keys()
