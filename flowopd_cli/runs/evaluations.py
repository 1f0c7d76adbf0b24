"""Evaluation runs and their figures, by suite and guidance. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.families import GUIDANCE_RULES
from flowopd_cli.recipe import EvalRecipe, EvalSpec
from flowopd_cli.runs.layout import part_name
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import read_json_lines, read_json_value

SHEET = "eval"
AVERAGE = "average"
UNBOUNDED = ("imagereward", "hpsv3")  # suffixes of suites whose means may be outside [0, 1]
FIGURES = ("mean", "stderr", "n", "exact")
PROTOCOL = ("split", "limit", "images", "steps", "guidance", "seed")
BASE, MODEL = "base", "this model"
_PART = re.compile(r"\.guidance-\d[\d.e+-]*$")
T = TypeVar("T")
Values = Mapping[tuple[str, str], Mapping[int, float]]  # {(tag, prompt): {number of the picture: figure}}


@dataclass(frozen=True)
class Evaluation:
    """An evaluation run: the results of its suites (see :func:`results`), and how pictures were made.

    ``scored`` is the digest of the adapter, ``None`` for the base; ``finished`` when it ended, empty if it has not.
    ``part`` names one of several guidances of the run, each of which is an evaluation; it is empty for a single one.
    """

    run: RunDir
    scored: str | None
    finished: str
    results: dict[str, dict[str, Any]]
    protocol: dict[str, Any]
    part: str = ""

    @property
    def of(self) -> str:
        """The row of a card with these figures."""
        return BASE if self.scored is None else MODEL

    @property
    def guidance(self) -> float:
        """The guidance of its pictures."""
        return self.protocol["guidance"]

    @property
    def quantize(self) -> str:
        """The bits of the base, ``none`` for full precision."""
        return self.protocol["quantize"]

    @property
    def sheet(self) -> Path:
        """The row of its pictures."""
        return self.run.image_file(part_name(SHEET, self.part))

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

    def values(self, suite: str) -> Values:
        """The headline of every valid picture of a suite, empty where its rows are not kept.

        Raises :class:`ArtifactError`: a row is damaged.
        """
        return self._figures(suite, lambda row: row["value"])

    def weights(self, suite: str) -> Values | None:
        """The weight of every valid picture in a suite's headline, ``None`` where all count alike.

        Raises :class:`ArtifactError`: a row is damaged.
        """
        name = self.results[suite]["weight"]
        return None if name is None else self._figures(suite, lambda row: row["scores"][name])

    def _figures(self, suite: str, figure: Callable[[Mapping[str, Any]], Any]) -> Values:
        path = self.run.eval_file(suite, self.part).with_suffix(".jsonl")
        by_prompt: dict[tuple[str, str], dict[int, float]] = {}
        try:
            for row in read_json_lines(path):
                if row["value"] is not None:
                    prompt = f"{row['task']}/{row['prompt']}"
                    by_prompt.setdefault((row["tag"], prompt), {})[row["index"]] = float(figure(row))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: damaged row of a scored picture ({one_line(error)})") from error
        return by_prompt

    def judged_otherwise(self, other: Evaluation) -> list[str]:
        """The common suites that different judges scored."""
        pairs = {name: (one["judge"], other.results.get(name, {}).get("judge")) for name, one in self.results.items()}
        return [name for name, (one, two) in pairs.items() if None not in (one, two) and one != two]


def fullest(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The evaluation with the most suites, of several one on the full-precision base, then the latest; or ``None``."""
    return max(evaluations, key=lambda one: (len(one.results), one.quantize == "none", one.finished), default=None)


def by_guidance(run: RunDir) -> list[Evaluation]:
    """The evaluations of the model that a run scored, one for each guidance; none if its stage is another."""
    recipe, manifest = run.recipe(), run.manifest()
    if not isinstance(recipe, EvalRecipe):
        return []
    scored = manifest.parents[0].sha256 if manifest.parents else None
    model = recipe.model.model_dump(include={"resolution", "max_sequence_length", "quantize", *GUIDANCE_RULES})
    return [
        Evaluation(
            run,
            scored,
            manifest.finished or "",
            results(run, part),
            spec.model_dump(include=set(PROTOCOL)) | model,
            part,
        )
        for part, (_, spec) in recipe.eval.by_guidance.items()
    ]


def outcome(spec: EvalSpec, by_part: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of an evaluation for JSON: ``suites``; of several guidances ``by_guidance`` and ``best_guidance``."""
    if list(by_part) == [""]:
        return {"suites": figures(by_part[""])}
    scales, best = spec.by_guidance, best_part(by_part)
    rows = [{"guidance": scales[part][0], "suites": figures(suites)} for part, suites in by_part.items()]
    return {"by_guidance": rows, "best_guidance": None if best is None else scales[best][0]}


def best_part(by_part: Mapping[T, Mapping[str, Mapping[str, Any]]]) -> T | None:
    """The key of the results with the highest average, the first of equals.

    ``None`` for a single one, or where the averages do not compare: other suites, or suites on different scales.
    """
    averages = {part: average_of(suites) for part, suites in by_part.items()}
    if len(by_part) < 2 or None in averages.values() or len({frozenset(suites) for suites in by_part.values()}) > 1:
        return None
    return max(averages, key=lambda part: averages[part] or 0.0)


def average_of(suites: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The figure that sums up results: the only suite, the suite ``average``, or the plain mean of all suites.

    A group and its parts, as of ``t2i-compbench``, count as the group. ``None`` for suites on different scales.
    """
    names = [name for name in suites if not any(name.startswith(f"{group}-") for group in suites)]
    means = {name: float(suites[name]["mean"]) for name in ([AVERAGE] if AVERAGE in suites else names)}
    if len(means) > 1 and not all(on_unit_scale(name, mean) for name, mean in means.items()):
        return None
    return math.fsum(means.values()) / len(means) if means else None


def on_unit_scale(suite: str, mean: float) -> bool:
    """Whether the mean of a suite is between 0 and 1."""
    return not suite.endswith(UNBOUNDED) and 0 <= mean <= 1


def results(run: RunDir, part: str = "") -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact, version, weight, judge}}`` of an evaluation run, or of one of its guidances.

    Raises :class:`ArtifactError`: a result is damaged.

    ``weight`` is the score that weights pictures, ``None`` if all count alike. ``judge`` is a digest of the scorer,
    ``None`` if a result does not name it; an average has the digests of its parts.
    """
    read, parts = {}, {}
    for path in sorted(run.eval_dir.glob(f"{part_name('*', part)}.json")):
        if not part and _PART.search(path.stem):
            continue  # of several guidances that the run had earlier
        result = read_json_value(path, "result of an evaluation")
        if isinstance(result, dict):  # the list of prompts is no result
            if not _is_result(result):
                raise ArtifactError(f"{path}: damaged result of an evaluation (suite, version, mean, stderr or n)")
            read[result["suite"]] = {key: result[key] for key in ("mean", "stderr", "n", "version")}
            weight = result.get("weight")
            read[result["suite"]] |= {"weight": weight if isinstance(weight, str) else None}
            read[result["suite"]] |= {"exact": bool(result.get("exact", True)), "judge": _judge(result)}
            parts[result["suite"]] = result.get("parts")
    for name, of in parts.items():
        judges = {part: read[part]["judge"] for part in of if part in read} if isinstance(of, dict) else {}
        if any(judges.values()):
            read[name]["judge"] = _digest(judges)
    return read


def figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact}}`` of results."""
    return {name: {key: result.get(key) for key in FIGURES} for name, result in results.items()}


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


def protocol(evaluation: Evaluation, *others: Evaluation) -> str:
    """How the pictures of an evaluation were made, in words; ``others`` may differ from it in guidance."""
    settings = evaluation.protocol
    guidances = ", ".join(f"{value:g}" for value in sorted({one.guidance for one in (evaluation, *others)}))
    limit = "" if settings["limit"] is None else f", at most {settings['limit']} a suite"
    images = settings["images"]
    pictures = "as many pictures each as the suite says" if images is None else f"{images} pictures each"
    rules = "".join(f", {name} {settings[name]:g}" for name in GUIDANCE_RULES if settings[name] is not None)
    precision = "" if evaluation.quantize == "none" else f", base in {evaluation.quantize}"
    suites = ", ".join(f"{name} {result['version']}" for name, result in evaluation.results.items())
    return (
        f"{settings['split']} prompts{limit}, {pictures}, {settings['steps']} steps, "
        f"guidance {guidances}{rules}, seed {settings['seed']}{precision}; suites {suites}"
    )
