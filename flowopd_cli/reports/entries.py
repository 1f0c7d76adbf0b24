"""Which models a comparison shows: runs and evaluations that belong together, told by the digests of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import BASE, Evaluation, evaluation, fullest
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir

__all__ = ["BASE", "Entry", "lineup"]


@dataclass(frozen=True)
class Entry:
    """A row: a model's name, the run that made it, its evaluation, and whether that compares with the others'."""

    name: str
    run: RunDir | None = None
    evaluation: Evaluation | None = None
    alike: bool = True

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """``{suite: {mean, stderr, n, exact}}``, nothing for a model that was not evaluated."""
        return self.evaluation.suites if self.evaluation else {}


def lineup(paths: Sequence[Path]) -> list[Entry]:
    """The models behind the named runs, in their order, the base first.

    A run that is no evaluation is looked for among the evaluations that are named or lie beside it; an evaluation
    stands for the model that it scored.

    Raises:
        ArtifactError: a path is no run, or an evaluation is unfinished or damaged.
    """
    runs = [RunDir.open(path, writes=False) for path in dict.fromkeys(path.resolve() for path in paths)]
    named = [run for run in runs if isinstance(run.recipe(), EvalRecipe)]
    scored = {run.path: _scored(run) for run in named}
    beside = dict(_beside(runs, known=scored))
    entries: list[Entry] = []
    for run in runs:
        if run.path in scored:
            entries.append(_of_evaluation(run, scored[run.path]))
        else:
            digest = _digest(run)
            own = [found for found in (*scored.values(), *beside.values()) if digest and found.scored == digest]
            entries.append(Entry(run.path.name, run, fullest(own)))
    bases = [found for found in beside.values() if found.scored is None]
    return _marked(_distinct(_with_base(entries, bases)))


def _scored(run: RunDir) -> Evaluation:
    found = evaluation(run)
    if found is None or not found.suites:
        raise ArtifactError(f"{run.path}: an evaluation without results; finish it first")
    return found


def _beside(runs: Sequence[RunDir], known: Mapping[Path, Any]) -> Iterable[tuple[Path, Evaluation]]:
    """Finished evaluations in the folders of the runs; what cannot be read is passed over."""
    for folder in dict.fromkeys(run.path.parent for run in runs):
        for path in sorted(folder.iterdir()):
            with suppress(FlowOPDError, OSError):
                if path not in known and is_run(path):
                    run = RunDir(path, writes=False)
                    found = evaluation(run) if run.manifest().status == "done" else None
                    if found is not None and found.suites and run.manifest().parents:
                        yield path, found


def _digest(run: RunDir) -> str | None:
    with suppress(FlowOPDError):
        return AdapterRef.parse(str(run.path)).resolve().sha256
    return None


def _of_evaluation(run: RunDir, found: Evaluation) -> Entry:
    """The model of an evaluation: its run, where it still lies where it was and is what it was."""
    parents = run.manifest().parents
    if not parents:
        return Entry(run.path.name, None, found)
    if parents[0].sha256 is None:
        return Entry(BASE, None, found)
    place = Path(parents[0].ref)
    for path in (place, run.path.parent / place.name):
        with suppress(FlowOPDError, OSError):
            maker = RunDir(path, writes=False)
            if is_run(path) and _digest(maker) == parents[0].sha256:
                return Entry(path.name, maker, found)
    return Entry(place.name or parents[0].ref, None, found)


def _with_base(entries: Sequence[Entry], bases: Sequence[Evaluation]) -> list[Entry]:
    """The base first: as it was named, else the evaluation beside the runs that shares most with the others."""
    first = [entry for entry in entries if entry.name == BASE and entry.evaluation]
    rest = [entry for entry in entries if entry not in first]
    others = [entry.evaluation for entry in rest if entry.evaluation]
    if not first and others:
        shared = {id(base): sum(len(base.shared(other)) for other in others) for base in bases}
        best = max(bases, key=lambda base: shared[id(base)], default=None)
        first = [Entry(BASE, None, best)] if best is not None and shared[id(best)] else []
    return [*first, *rest]


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    """One entry for a model and evaluation, each under a name of its own."""
    found: dict[str, Entry] = {}
    seen: set[tuple[Path | None, Path | None]] = set()
    for entry in entries:
        key = (entry.run.path.resolve() if entry.run else None, entry.evaluation.run.path if entry.evaluation else None)
        if key in seen:
            continue
        seen.add(key)
        name, number = entry.name, 2
        while name in found:
            name, number = f"{entry.name} ({number})", number + 1
        found[name] = replace(entry, name=name)
    return list(found.values())


def _marked(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose evaluation was not made as most were say so: their figures do not compare. What stays compares
    each with each, also where one, of a version that named no judge, is like two that differ.
    """
    made = [entry.evaluation for entry in entries if entry.evaluation]
    usual: list[Evaluation] = []
    for one in sorted(made, key=lambda one: -sum(_same(one, other) for other in made)):
        usual += [one] if all(_same(one, other) for other in usual) else []
    alike = [not entry.evaluation or any(entry.evaluation is one for one in usual) for entry in entries]
    return [replace(entry, alike=same) for entry, same in zip(entries, alike, strict=True)]


def _same(one: Evaluation, two: Evaluation) -> bool:
    """Whether protocols are equal and no suite has another version or another judge."""
    versions = all(two.versions.get(name, version) == version for name, version in one.versions.items())
    return one.protocol == two.protocol and versions and not one.judged_otherwise(two)
