"""What a model card reports: evaluations of base and model, and the guidance that was best on validation prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.runs.adapter_ref import Adapter, AdapterRef
from flowopd_cli.runs.evaluations import BASE, MODEL, Evaluation, best_part, by_guidance, fullest, protocol
from flowopd_cli.runs.manifest import Base, is_run
from flowopd_cli.runs.run import RunDir


@dataclass(frozen=True)
class Reported:
    """The rows of the card's table: the base's, then the model's, as far as they exist.

    ``guidance`` is the one to use: that of ``best``, the evaluation on validation prompts with the highest average of
    those at several ``guidances``; without one that of the model's row, or ``None`` if that would be chosen on test
    prompts, where ``guidances`` are those of the row's run.
    """

    rows: list[Evaluation]
    best: Evaluation | None = None
    guidances: tuple[float, ...] = ()

    @property
    def model(self) -> Evaluation | None:
        """The model's row."""
        return next((one for one in self.rows if one.of == MODEL), None)

    @property
    def guidance(self) -> float | None:
        """The guidance to use."""
        one = self.best or (None if self.guidances else self.model)
        return None if one is None else one.guidance


def reported(
    source: RunDir, named: Sequence[str], adapter: Adapter | None = None, guidance: float | None = None
) -> Reported:
    """The evaluations of the base and of this model for a card: the ``named`` runs, else the best beside the run.

    The best are complete evaluations on test prompts: of this model the one with the most suites (the latest of
    several), of the base the one that shares its protocol and most of its suites. Of several guidances the row has the
    best on validation prompts, by complete or named evaluations, else the one nearest to ``guidance``. Unreadable runs
    are skipped. A named run of another model, or two that do not compare, are an :class:`ArtifactError`.
    """
    sha256, base = (adapter or AdapterRef.parse(str(source.path)).resolve()).sha256, source.manifest().base
    groups = [_of_model(RunDir.open(path, writes=False), sha256, base) for path in named]
    for path, group in zip(named, groups, strict=True):
        if not group:
            raise ArtifactError(f"{path}: not a finished evaluation of {source.path} or of its base")
    neighbours = [one for one in _neighbours(source, sha256, base) if one.protocol["limit"] is None]
    choice = _compared([one for group in groups for one in group]) or _compared(neighbours)
    part = best_part({one.guidance: one.results for one in choice})
    best = next((one for one in choice if one.guidance == part), None)
    candidates = _named(groups) if named else [one for one in neighbours if one.protocol["split"] == "test"]
    row = _row([one for one in candidates if one.of == MODEL], guidance if best is None else best.guidance)
    bases = [one for one in candidates if one.of == BASE]
    if row is None:
        return Reported(bases[:1], best, _guidances(choice if best else ()))
    shared = fullest(
        replace(e, results={name: e.results[name] for name in e.shared(row)}) for e in bases if e.shared(row)
    )
    if named and bases and shared is None:
        judged = ", ".join(bases[0].judged_otherwise(row))
        how = f"{protocol(bases[0])} / {protocol(row)}" + (f"; another judge of {judged}" if judged else "")
        raise ArtifactError(f"--eval: base and model were not evaluated alike ({how}); repeat one, or name one")
    guidances = _guidances(choice if best else [one for one in candidates if row.part and one.run is row.run])
    return Reported([row] if shared is None else [shared, row], best, guidances)


def _guidances(evaluations: Iterable[Evaluation]) -> tuple[float, ...]:
    return tuple(sorted({one.guidance for one in evaluations}))


def _neighbours(source: RunDir, sha256: str | None, base: Base | None) -> Iterator[Evaluation]:
    for path in sorted(source.path.resolve().parent.iterdir()):
        with suppress(FlowOPDError):
            yield from _of_model(RunDir(path, writes=False), sha256, base) if is_run(path) else ()


def _of_model(run: RunDir, sha256: str | None, base: Base | None) -> list[Evaluation]:
    """A finished evaluation of the adapter with digest ``sha256`` or of its base, by guidance; none of other runs."""
    manifest = run.manifest()
    if manifest.status != "done" or manifest.base is None or not manifest.parents:
        return []
    if manifest.parents[0].sha256 not in (sha256, None):
        return []
    if base is not None and base.sha256 is not None and manifest.base.sha256 != base.sha256:
        return []
    return by_guidance(run)


def _compared(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """The model's evaluations on validation prompts that differ in guidance alone; of several sets the largest."""
    sets: dict[str, dict[float, Evaluation]] = {}
    for one in sorted(evaluations, key=lambda one: one.finished):
        if one.of == MODEL and one.protocol["split"] == "validation":
            judges = {name: (result["version"], result["judge"]) for name, result in one.results.items()}
            key = json.dumps([{**one.protocol, "guidance": None}, judges], sort_keys=True)
            sets.setdefault(key, {})[one.guidance] = one
    sizes = [list(by_value.values()) for by_value in sets.values() if len(by_value) > 1]
    return max(sizes, key=lambda group: (len(group), len(group[0].results)), default=[])


def _named(groups: Sequence[Sequence[Evaluation]]) -> list[Evaluation]:
    """The evaluations of at most one run of each model, not counting one that compares guidances beside another."""
    chosen: dict[str, Sequence[Evaluation]] = {}
    rest = [group for group in groups if not (group[0].part and group[0].protocol["split"] == "validation")]
    compared = [group for group in groups if group not in rest]
    for group in (*rest, *(one for one in compared if one[0].of not in {other[0].of for other in rest})):
        of, path = group[0].of, group[0].run.path
        if of in chosen:
            raise ArtifactError(f"--eval {path}: {chosen[of][0].run.path} is of {of} too; name one")
        chosen[of] = group
    return [one for group in chosen.values() for one in group]


def _row(candidates: Sequence[Evaluation], guidance: float | None) -> Evaluation | None:
    """The model's row: the fullest evaluation, if possible at that guidance, else the nearest of its run."""
    row = fullest([one for one in candidates if one.guidance == guidance]) or fullest(candidates)
    if row is None or guidance is None:
        return row
    return min((one for one in candidates if one.run is row.run), key=lambda one: abs(one.guidance - guidance))
