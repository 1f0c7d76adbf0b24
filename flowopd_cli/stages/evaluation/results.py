"""The results of an evaluation, from scored rows or from the output of official scorers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe, EvalSpec
from flowopd_cli.rewards.base import Reward
from flowopd_cli.runs.evaluations import AVERAGE, average_of, best_part
from flowopd_cli.stages.evaluation.journal import Scored, key_of
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests
from flowopd_cli.suites.base import MissingScores, Result, Row, Suite, summarize
from flowopd_cli.system.progress import Progress


def rows_by_suite(scored: Sequence[Scored], requests: Sequence[PictureRequest]) -> dict[str, list[Row]]:
    """The rows of each suite with the places of their pictures, in the order of the requests."""
    paths = {request.key: request.path for request in requests}
    order = {key: number for number, key in enumerate(paths)}
    by_suite: dict[str, list[Row]] = {}
    for name, row in sorted(scored, key=lambda item: order[key_of(item[1])]):
        by_suite.setdefault(name, []).append({**row, "picture": paths[key_of(row)]})
    return by_suite


def summarize_all(
    requests: Requests, rows: Mapping[str, list[Row]], rewards: Mapping[str, Reward], recipe: EvalRecipe
) -> dict[str, Result]:
    """The result of every suite, then of every group."""
    results = {s.name: summarize(s, rows[s.name], protocol(recipe, s), rewards[s.name]) for s in requests.suites}
    results = _with_groups(requests, {n: _marked(result, requests.others.get(n)) for n, result in results.items()})
    for group in requests.groups:
        others = [f"{s.name}/{requests.others[s.name]}" for s in group.suites if s.name in requests.others]
        if others and group.name in results:
            digest = hashlib.sha256("\n".join(others).encode()).hexdigest()
            results[group.name] = _marked(results[group.name], digest)
    return results


def _marked(result: Result, others: str | None) -> Result:
    """The result marked as of other prompts than the suite's own, if there are any: ``others`` is their digest."""
    if others is None:
        return result
    note = "; ".join(filter(None, [result.get("note", ""), "on other prompts than the suite's own"]))
    return {**result, "version": f"{result['version']}+{others[:8]}", "exact": False, "note": note, "published": {}}


def imported(requests: Requests, folder: Path) -> dict[str, Result]:
    """The results that official scorers wrote under ``folder``; :class:`RecipeError` if no suite finds any."""
    results: dict[str, Result] = {}
    missing: list[str] = []
    for suite in requests.suites:
        try:
            result = suite.imported(folder) if suite.imported is not None else None
            results |= {} if result is None else {result["suite"]: result}
        except MissingScores as error:
            missing.append(str(error))
    if not results:
        names = ", ".join(suite.name for suite in requests.suites)
        reason = f": {missing[0]}" if missing else ""
        raise RecipeError(f"--import-scores: no official scores for {names}{reason}")
    return _with_groups(requests, results)


def protocol(recipe: EvalRecipe, suite: Suite) -> dict[str, Any]:
    """How the pictures of a suite were drawn."""
    spec = recipe.eval
    prompts = {"split": spec.split, "limit": spec.limit}
    if spec.pictures is not None:
        return prompts | {"pictures": "drawn by another program"}
    return prompts | {
        "steps": spec.steps,
        "guidance": spec.guidance,
        "images": spec.images or suite.images,
        "seed": spec.seed,
        "sampler": "euler-ode",
        "model": recipe.model.pretrained,
    }


def show(progress: Progress, spec: EvalSpec, results: Mapping[str, Mapping[str, Result]], title: str) -> None:
    """Show the figures of every suite by part: a row for each suite, or for each of several guidances."""
    if len(results) == 1:
        _show_suites(progress, next(iter(results.values())), title)
        return
    best, suites = best_part(results), list(next(iter(results.values())))
    rows = []
    for name, by_suite in results.items():
        cells = ["—" if suite not in by_suite else f"{by_suite[suite]['mean']:.4f}" for suite in suites]
        average = average_of(by_suite)
        mark = f" (best on {spec.split})" if name == best else ""
        rows.append((f"{spec.by_guidance[name][0]:g}{mark}", *cells, "—" if average is None else f"{average:.4f}"))
    progress.table(title, ("guidance", *suites, AVERAGE), rows)


def _show_suites(progress: Progress, results: Mapping[str, Result], title: str) -> None:
    """Show the headline figures, one row per suite; ``~`` marks a figure that differs from the reference scorer's."""
    rows = []
    for name, r in results.items():
        mean = ("" if r.get("exact", True) else "~") + f"{r['mean']:.4f}"
        error = "" if r.get("stderr") is None else f"{r['stderr']:.4f}"
        published = ", ".join(f"{model} {value:g}" for model, value in r.get("published", {}).items())
        rows.append((name, mean, error, r["n"], published))
    columns = 5 if any(row[4] for row in rows) else 4
    progress.table(title, ("suite", "mean", "± s.e.", "images", "published")[:columns], [row[:columns] for row in rows])


def _with_groups(requests: Requests, results: dict[str, Result]) -> dict[str, Result]:
    for group in requests.groups:
        names = {suite.name for suite in group.suites} | {suite.name.split("[")[0] for suite in group.suites}
        members = {name: result for name, result in results.items() if name in names}
        combined = group.combine(members) if group.combine is not None and members else None
        if combined is not None:
            results = {**results, group.name: combined}
    return results
