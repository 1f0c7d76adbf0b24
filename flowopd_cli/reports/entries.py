"""The models of a comparison: runs and evaluations, matched by the digests of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import BASE, Evaluation, best_part, by_guidance, fullest
from flowopd_cli.runs.manifest import Parent, is_run
from flowopd_cli.runs.run import RunDir


@dataclass(frozen=True)
class Entry:
    """A model's name, its run, its evaluation, and whether the evaluation is comparable with the others.

    With ``by_guidance`` the models are evaluated at several guidances: each is an entry, and compares with all others.
    ``costs`` are further columns of the table, whole numbers.
    """

    name: str
    run: RunDir | None = None
    evaluation: Evaluation | None = None
    comparable: bool = True
    by_guidance: bool = False
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name, the bits of a quantized base, and the guidance where it tells the entries of a model apart."""
        bits = f", {self.quantize} base" if self.quantize != "none" else ""
        return f"{self.name}{bits}" + ("" if self.guidance is None else f", guidance {self.guidance:g}")

    @property
    def quantize(self) -> str:
        """The bits of the base in the evaluation."""
        return self.evaluation.quantize if self.evaluation else "none"

    @property
    def guidance(self) -> float | None:
        """The guidance in the label."""
        return self.evaluation.guidance if self.by_guidance and self.evaluation else None

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
    named = {run.path: _evaluations(run) for run in runs if isinstance(run.recipe(), EvalRecipe)}
    others = [one for one in _neighbours(runs) if one.run.path not in named]
    all_scores = [*(one for group in named.values() for one in group), *others]
    entries: list[Entry] = []
    for run in runs:
        if run.path in named:
            entries += [_scored_model(run, one) for one in named[run.path]]
        else:
            digest = _digest(run.path)
            scores = [one for one in all_scores if digest and one.scored == digest]
            of_bits = [[one for one in scores if (one.quantize == "none") == whole] for whole in (True, False)]
            best = [top.run.path for top in map(fullest, of_bits) if top]
            of_run = [one for one in scores if one.run.path in best]
            entries += [Entry(run.path.name, run, one) for one in of_run or [None]]
    bases = [one for one in others if one.scored is None]
    entries = _unique(_with_base(entries, bases))
    return _mark_comparable(compared_by_guidance(entries))


def compared_by_guidance(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, each with its guidance if a model has several."""
    several = any(entry.evaluation and entry.evaluation.part for entry in entries)
    return [replace(entry, by_guidance=several) for entry in entries]


def best_of_guidances(entries: Sequence[Entry]) -> list[Entry]:
    """The entry with the best average of each model that has several guidances."""
    models: dict[tuple[str, str], dict[int, Entry]] = {}
    for index, entry in enumerate(entries):
        if entry.guidance is not None:
            models.setdefault((entry.name, entry.quantize), {})[index] = entry
    best = {name: best_part({i: entry.results for i, entry in group.items()}) for name, group in models.items()}
    return [models[name][index] for name, index in best.items() if index is not None]


def locate(run: RunDir, parent: Parent) -> Path | None:
    """A parent's run at its recorded path, or in the folder of ``run`` if both were moved."""
    with suppress(FlowOPDError, OSError):
        reference = AdapterRef.parse(parent.ref)
        for path in (Path(reference.location), run.path.resolve().parent / Path(reference.location).name):
            if reference.location and reference.kind != "hub" and is_run(path):
                return path
    return None


def _evaluations(run: RunDir) -> list[Evaluation]:
    scores = [one for one in by_guidance(run) if one.results]
    if not scores:
        raise ArtifactError(f"{run.path}: an evaluation without results; finish it first")
    return scores


def _neighbours(runs: Sequence[RunDir]) -> Iterator[Evaluation]:
    """The finished evaluations in the folders of the runs; unreadable ones are skipped."""
    for folder in dict.fromkeys(run.path.parent for run in runs):
        for path in sorted(folder.iterdir()):
            with suppress(FlowOPDError, OSError):
                run = RunDir(path, writes=False)
                if is_run(path) and run.manifest().status == "done" and run.manifest().parents:
                    yield from _evaluations(run)


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
        path = bases[shared.index(max(shared))].run.path
        first = [Entry(BASE, None, one) for one, n in zip(bases, shared, strict=True) if n and one.run.path == path]
    return [*first, *rest]


def _unique(entries: Sequence[Entry]) -> list[Entry]:
    unique: dict[tuple[tuple[Path | None, Path | None], str], Entry] = {}
    named: dict[tuple[Path | None, Path | None], Entry] = {}
    for entry in entries:
        key = (entry.run.path.resolve() if entry.run else None, entry.evaluation.run.path if entry.evaluation else None)
        numbered = (replace(entry, name=entry.name if n == 1 else f"{entry.name} ({n})") for n in count(1))
        free = (one for one in numbered if not any(_named_alike(one, other) for other in named.values()))
        name = named.setdefault(key, entry if key in named else next(free)).name
        unique.setdefault((key, entry.evaluation.part if entry.evaluation else ""), replace(entry, name=name))
    return list(unique.values())


def _named_alike(one: Entry, other: Entry) -> bool:
    """Whether two entries have one name, but are not the same weights on a base in other bits."""
    same = one.evaluation and other.evaluation and one.evaluation.scored == other.evaluation.scored
    return one.name == other.name and not (same and one.quantize != other.quantize)


def _mark_comparable(entries: Sequence[Entry]) -> list[Entry]:
    """Mark a group of mutually comparable evaluations, starting with those comparable with most others,
    of equals those on a full-precision base.

    Comparability is not transitive: an evaluation without a judge's name is comparable with two of different judges.
    """
    evaluations = [_in_comparison(entry) for entry in entries]
    group: list[Evaluation] = []
    ranks = {id(one): -sum(_compare(one, other) for other in evaluations) for one in evaluations if one}
    for one in sorted(filter(None, evaluations), key=lambda one: (ranks[id(one)], one.quantize != "none")):
        group += [one] if all(_compare(one, other) for other in group) else []
    return [
        replace(entry, comparable=one is None or one in group) for entry, one in zip(entries, evaluations, strict=True)
    ]


def _in_comparison(entry: Entry) -> Evaluation | None:
    """The evaluation of an entry, without its guidance if the entries are compared by that."""
    one = entry.evaluation
    return replace(one, protocol={**one.protocol, "guidance": None}) if one and entry.by_guidance else one


def _compare(one: Evaluation, two: Evaluation | None) -> bool:
    if two is None:
        return False
    return one.protocol == two.protocol and set(one.shared(two)) == one.results.keys() & two.results.keys()
