"""Evaluation runs: their figures, and which of them a model card reports. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import Adapter, AdapterRef
from flowopd_cli.runs.manifest import Base, is_run
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import read_json_value

FIGURES = ("mean", "stderr", "n", "exact")
PROTOCOL = ("split", "limit", "images", "steps", "guidance", "seed")
BASE, MODEL = "base", "this model"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation run: the results of its suites (see :func:`results`), and how pictures were made.

    ``scored`` is the digest of the adapter, ``None`` for the base; ``finished`` when it ended, empty if it has not.
    """

    run: RunDir
    scored: str | None
    finished: str
    results: dict[str, dict[str, Any]]
    protocol: dict[str, Any]

    @property
    def of(self) -> str:
        """The row of a card with these figures."""
        return BASE if self.scored is None else MODEL

    @property
    def suites(self) -> dict[str, dict[str, Any]]:
        """``{suite: {mean, stderr, n, exact}}``."""
        return figures(self.results)

    def shared(self, other: Evaluation) -> list[str]:
        """The suites whose figures compare with the other's: same protocol, same version, same judge."""
        others, judged_otherwise = other.results, self.judged_otherwise(other)
        return [
            name
            for name, result in self.results.items()
            if name in others and others[name]["version"] == result["version"] and name not in judged_otherwise
            if self.protocol == other.protocol
        ]

    def judged_otherwise(self, other: Evaluation) -> list[str]:
        """The common suites that different judges scored."""
        pairs = {name: (one["judge"], other.results.get(name, {}).get("judge")) for name, one in self.results.items()}
        return [name for name, (one, two) in pairs.items() if None not in (one, two) and one != two]


def evaluations(source: RunDir, named: Sequence[str], adapter: Adapter | None = None) -> list[Evaluation]:
    """The evaluations of the base and of this model for a card: the ``named`` runs, else the best beside the run.

    The best are complete evaluations on test prompts: of this model the one with the most suites (the latest of
    several), of the base the one that shares its protocol and most of its suites. Unreadable runs are skipped. A named
    run of another model, or two that do not compare, are an :class:`ArtifactError`.
    """
    sha256, base = (adapter or AdapterRef.parse(str(source.path)).resolve()).sha256, source.manifest().base
    if named:
        return _named(source, [(path, _of_model(RunDir.open(path, writes=False), sha256, base)) for path in named])
    candidates = []
    for path in sorted(source.path.resolve().parent.iterdir()):
        with suppress(FlowOPDError):
            candidates += [_of_model(RunDir(path, writes=False), sha256, base)] if is_run(path) else []
    whole = [e for e in candidates if e and e.protocol["split"] == "test" and e.protocol["limit"] is None]
    ours = fullest(e for e in whole if e.of == MODEL)
    if ours is None:
        return []
    best = fullest(_only(e, e.shared(ours)) for e in whole if e.of == BASE and e.shared(ours))
    return [ours] if best is None else [best, ours]


def fullest(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The evaluation with the most suites, the latest of several; ``None`` where there is none."""
    return max(evaluations, key=lambda one: (len(one.results), one.finished), default=None)


def _only(evaluation: Evaluation, suites: Iterable[str]) -> Evaluation:
    return replace(evaluation, results={name: evaluation.results[name] for name in suites})


def _named(source: RunDir, candidates: Iterable[tuple[str, Evaluation | None]]) -> list[Evaluation]:
    chosen: dict[str, Evaluation] = {}
    for path, evaluation in candidates:
        if evaluation is None:
            raise ArtifactError(f"{path}: not a finished evaluation of {source.path} or of its base")
        if evaluation.of in chosen:
            raise ArtifactError(f"--eval {path}: {chosen[evaluation.of].run.path} is of {evaluation.of} too; name one")
        chosen[evaluation.of] = evaluation
    if len(chosen) < 2:
        return list(chosen.values())
    base, ours = chosen[BASE], chosen[MODEL]
    shared = base.shared(ours)
    if not shared:
        judged = ", ".join(base.judged_otherwise(ours))
        how = f"{protocol(base)} / {protocol(ours)}" + (f"; another judge of {judged}" if judged else "")
        raise ArtifactError(f"--eval: base and model were not evaluated alike ({how}); repeat one, or name one")
    return [_only(base, shared), ours]


def _of_model(run: RunDir, sha256: str | None, base: Base | None) -> Evaluation | None:
    """A finished evaluation of the adapter with digest ``sha256`` or of its base, ``None`` for any other run."""
    manifest = run.manifest()
    if manifest.status != "done" or manifest.base is None or not manifest.parents:
        return None
    if manifest.parents[0].sha256 not in (sha256, None):
        return None
    if base is not None and base.sha256 is not None and manifest.base.sha256 != base.sha256:
        return None
    return evaluation(run)


def evaluation(run: RunDir) -> Evaluation | None:
    """The evaluation of the adapter or base that a run scored; ``None`` if the run is not an evaluation."""
    recipe, manifest = run.recipe(), run.manifest()
    if not isinstance(recipe, EvalRecipe):
        return None
    scored = manifest.parents[0].sha256 if manifest.parents else None
    settings = recipe.eval.model_dump(include=set(PROTOCOL))
    settings |= recipe.model.model_dump(include={"resolution", "max_sequence_length"})
    return Evaluation(run, scored, manifest.finished or "", results(run), settings)


def results(run: RunDir) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact, version, judge}}`` of an evaluation run; :class:`ArtifactError` if damaged.

    ``judge`` is a digest of the scorer, ``None`` if a result does not name it; an average has the digests of its parts.
    """
    read, parts = {}, {}
    for path in sorted(run.eval_dir.glob("*.json")):
        result = read_json_value(path, "result of an evaluation")
        if isinstance(result, dict):  # the list of prompts is no result
            if not _is_result(result):
                raise ArtifactError(f"{path}: damaged result of an evaluation (suite, version, mean, stderr or n)")
            read[result["suite"]] = {key: result[key] for key in ("mean", "stderr", "n", "version")}
            read[result["suite"]] |= {"exact": bool(result.get("exact", True)), "judge": _judge(result)}
            parts[result["suite"]] = result.get("parts")
    for name, of in parts.items():
        judges = {part: read[part]["judge"] for part in of if part in read} if isinstance(of, dict) else {}
        if any(judges.values()):
            read[name]["judge"] = _digest(judges)
    return read


def figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact}}`` of results."""
    return {name: {key: result[key] for key in FIGURES} for name, result in results.items()}


def _judge(result: Mapping[str, Any]) -> str | None:
    names = {key: result[key] for key in ("reward", "engine") if isinstance(result.get(key), str)}
    weights = result.get("weights")
    files = sorted((n, w) for n, w in weights.items() if isinstance(w, str)) if isinstance(weights, dict) else []
    return _digest([names, files]) if names or files else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_result(result: Mapping[str, Any]) -> bool:
    named = all(isinstance(result.get(key), str) and result[key].isprintable() for key in ("suite", "version"))
    mean, error, count = (result.get(key, "missing") for key in ("mean", "stderr", "n"))
    return named and _is_number(mean) and (error is None or _is_number(error)) and type(count) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def protocol(evaluation: Evaluation) -> str:
    """How the pictures of an evaluation were made, in words."""
    settings = evaluation.protocol
    limit = "" if settings["limit"] is None else f", at most {settings['limit']} a suite"
    images = settings["images"]
    pictures = "as many pictures each as the suite says" if images is None else f"{images} pictures each"
    suites = ", ".join(f"{name} {result['version']}" for name, result in evaluation.results.items())
    return (
        f"{settings['split']} prompts{limit}, {pictures}, {settings['steps']} steps, "
        f"guidance {settings['guidance']:g}, seed {settings['seed']}; suites {suites}"
    )
