"""Which evaluations a model card reports of a run and of its base, and how their pictures were made. No torch here."""

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

FIGURES = ("mean", "stderr", "n")
PROTOCOL = ("split", "limit", "images", "steps", "guidance", "seed")
BASE, MODEL = "base", "this model"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation run of this model or of its base: each suite's figures, version and judge (``None`` where the
    result does not say which it was), and how pictures were made.

    ``scored`` is the digest of the adapter, ``None`` of the base; ``finished`` when it ended, empty where it has not.
    """

    run: RunDir
    scored: str | None
    finished: str
    suites: dict[str, dict[str, Any]]
    versions: dict[str, str]
    judges: dict[str, str | None]
    protocol: dict[str, Any]

    @property
    def of(self) -> str:
        """Whose figures they are, in the words of a card."""
        return BASE if self.scored is None else MODEL

    def comparable(self) -> bool:
        """Whether it is a whole evaluation on test prompts, which a card reports by default."""
        return self.protocol["split"] == "test" and self.protocol["limit"] is None

    def shared(self, other: Evaluation) -> list[str]:
        """The suites whose figures stand beside the other's: same protocol, same version, same judge."""
        if self.protocol != other.protocol:
            return []
        alike = [name for name in self.suites if other.versions.get(name) == self.versions[name]]
        return [name for name in alike if name not in self.judged_otherwise(other)]

    def judged_otherwise(self, other: Evaluation) -> list[str]:
        """The suites that the other has too, and that another judge scored there."""
        pairs = {name: (judge, other.judges.get(name)) for name, judge in self.judges.items()}
        return [name for name, (one, two) in pairs.items() if None not in (one, two) and one != two]


def evaluations(source: RunDir, named: Sequence[str], adapter: Adapter | None = None) -> list[Evaluation]:
    """What to report of the base and of this model: the ``named`` evaluation runs, else the best beside the run.

    The best are whole evaluations on test prompts: of this model the one with the most suites (the latest of several),
    of the base the one that shares its protocol and most of its suites. Runs that cannot be read are passed over.

    Raises:
        ArtifactError: a named run is no evaluation, not of this adapter or its base, or two of them do not compare.
    """
    sha256, base = (adapter or AdapterRef.parse(str(source.path)).resolve()).sha256, source.manifest().base
    if named:
        return _named(source, [_evaluation(RunDir.open(path, writes=False), sha256, base) for path in named], named)
    candidates = []
    for path in sorted(source.path.resolve().parent.iterdir()):
        with suppress(FlowOPDError):
            candidates += [_evaluation(RunDir(path, writes=False), sha256, base)] if is_run(path) else []
    whole = [e for e in candidates if e is not None and e.comparable()]
    ours = fullest(e for e in whole if e.of == MODEL)
    if ours is None:
        return []
    bases = [replace(e, suites={name: e.suites[name] for name in e.shared(ours)}) for e in whole if e.of == BASE]
    best = fullest(e for e in bases if e.suites)
    return [ours] if best is None else [best, ours]


def fullest(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The evaluation with the most suites, the latest of several; ``None`` where there is none."""
    return max(evaluations, key=lambda one: (len(one.suites), one.finished), default=None)


def _named(source: RunDir, candidates: Sequence[Evaluation | None], named: Sequence[str]) -> list[Evaluation]:
    chosen: dict[str, Evaluation] = {}
    for path, evaluation in zip(named, candidates, strict=True):
        if evaluation is None:
            raise ArtifactError(f"{path}: not a finished evaluation of {source.path} or of its base")
        if evaluation.of in chosen:
            raise ArtifactError(f"--eval {path}: {chosen[evaluation.of].run.path} is of {evaluation.of} too; name one")
        chosen[evaluation.of] = evaluation
    if len(chosen) < 2:
        return list(chosen.values())
    base, ours = chosen[BASE], chosen[MODEL]
    alike = base.shared(ours)
    if not alike:
        one, two, judged = protocol(base), protocol(ours), ", ".join(base.judged_otherwise(ours))
        how = f"{one} / {two}" + (f"; another judge of {judged}" if judged else "")
        raise ArtifactError(f"--eval: base and model were not evaluated alike ({how}); repeat one, or name one")
    return [replace(base, suites={name: base.suites[name] for name in alike}), ours]


def _evaluation(run: RunDir, sha256: str | None, base: Base | None) -> Evaluation | None:
    """An evaluation of the adapter with digest ``sha256`` or of its base; ``None`` if the run is something else."""
    manifest = run.manifest()
    if manifest.status != "done" or manifest.base is None or not manifest.parents:
        return None
    if manifest.parents[0].sha256 not in (sha256, None):
        return None
    if base is not None and base.sha256 is not None and manifest.base.sha256 != base.sha256:
        return None
    return evaluation(run)


def evaluation(run: RunDir) -> Evaluation | None:
    """What an evaluation run says of the adapter that it scored, or of the base; ``None`` when it is no such run.

    Raises:
        ArtifactError: recipe or results are damaged.
    """
    recipe = run.recipe()
    if not isinstance(recipe, EvalRecipe):
        return None
    manifest = run.manifest()
    scored = manifest.parents[0].sha256 if manifest.parents else None
    made = recipe.eval.model_dump(include=set(PROTOCOL))
    made |= {"resolution": recipe.model.resolution, "max_sequence_length": recipe.model.max_sequence_length}
    read = _results_of(run)
    versions = {name: str(result["version"]) for name, result in read.items()}
    judges = {name: result["judge"] for name, result in read.items()}
    return Evaluation(run, scored, manifest.finished or "", _figures(read), versions, judges, made)


def results(run: RunDir) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact}}`` of an evaluation run.

    Raises:
        ArtifactError: a result is damaged.
    """
    return _figures(_results_of(run))


def _figures(read: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: result[key] for key in (*FIGURES, "exact")} for name, result in read.items()}


def _results_of(run: RunDir) -> dict[str, dict[str, Any]]:
    """Each suite's figures, version and judge; the prompts beside them are no suite's."""
    read, parts = {}, {}
    for path in sorted(run.eval_dir.glob("*.json")):
        result = read_json_value(path, "result of an evaluation")
        if isinstance(result, dict):
            if not _is_result(result):
                raise ArtifactError(f"{path}: damaged result of an evaluation (suite, version, mean, stderr or n)")
            read[result["suite"]] = {key: result[key] for key in (*FIGURES, "version")}
            read[result["suite"]] |= {"exact": bool(result.get("exact", True)), "judge": _judge(result)}
            parts[result["suite"]] = result.get("parts")
    for name, of in parts.items():
        judges = {part: read[part]["judge"] for part in of if part in read} if isinstance(of, dict) else {}
        if any(judges.values()):
            read[name]["judge"] = _digest(judges)
    return read


def _judge(result: Mapping[str, Any]) -> str | None:
    """What tells the judge of a result from any other, ``None`` where the result has nothing of it."""
    names = {key: result[key] for key in ("reward", "engine") if isinstance(result.get(key), str)}
    weights = result.get("weights")
    files = sorted((n, w) for n, w in weights.items() if isinstance(w, str)) if isinstance(weights, dict) else []
    return _digest([names, files]) if names or files else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_result(result: Mapping[str, Any]) -> bool:
    """Whether it has what every result of a suite has, each of its kind."""
    named = all(isinstance(result.get(key), str) and result[key].isprintable() for key in ("suite", "version"))
    mean, error, count = (result.get(key, "missing") for key in FIGURES)
    return named and _is_number(mean) and (error is None or _is_number(error)) and type(count) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) >= 1e300


def _pictures(images: int | None) -> str:
    return "as many pictures each as the suite says" if images is None else f"{images} pictures each"


def protocol(evaluation: Evaluation) -> str:
    """How the pictures of an evaluation were made, in words."""
    made = evaluation.protocol
    limit = "" if made["limit"] is None else f", at most {made['limit']} a suite"
    suites = ", ".join(f"{name} {evaluation.versions[name]}" for name in evaluation.suites)
    return (
        f"{made['split']} prompts{limit}, {_pictures(made['images'])}, {made['steps']} steps, "
        f"guidance {made['guidance']:g}, seed {made['seed']}; suites {suites}"
    )
