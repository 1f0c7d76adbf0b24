"""The results of an evaluation, from scored rows or from the output of official scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.journal import Scored, key_of
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests
from flowopd_cli.suites.base import MissingScores, Result, Row, Suite, summarize
from flowopd_cli.system.progress import Progress


def rows_by_suite(scored: Sequence[Scored], requests: Sequence[PictureRequest]) -> dict[str, list[Row]]:
    """The rows of each suite, in the order of the requests."""
    order = {request.key: number for number, request in enumerate(requests)}
    by_suite: dict[str, list[Row]] = {}
    for name, row in sorted(scored, key=lambda item: order[key_of(item[1])]):
        by_suite.setdefault(name, []).append(row)
    return by_suite


def summarize_all(
    requests: Requests, rows: Mapping[str, list[Row]], rewards: Mapping[str, Reward], recipe: EvalRecipe
) -> dict[str, Result]:
    """The result of every suite, then of every group."""
    results = {
        suite.name: summarize(suite, rows[suite.name], protocol(recipe, suite), rewards[suite.name])
        for suite in requests.suites
    }
    return _with_groups(requests, results)


def imported(requests: Requests, folder: Path) -> dict[str, Result]:
    """The results that official scorers wrote under ``folder``.

    Raises:
        RecipeError: none of the suites finds such files.
        ArtifactError: one of them is damaged.
    """
    results: dict[str, Result] = {}
    missing: list[str] = []
    for suite in requests.suites:
        try:
            result = suite.imported(folder) if suite.imported is not None else None
        except MissingScores as error:
            missing.append(str(error))
            continue
        if result is not None:
            results[result["suite"]] = result
    if not results:
        names = ", ".join(suite.name for suite in requests.suites)
        reason = f": {missing[0]}" if missing else ""
        raise RecipeError(f"--import-scores: no official scores for {names}{reason}")
    return _with_groups(requests, results)


def protocol(recipe: EvalRecipe, suite: Suite) -> dict[str, Any]:
    """How the pictures of a suite were drawn."""
    spec = recipe.eval
    if spec.pictures is not None:
        return {"split": spec.split, "limit": spec.limit, "pictures": "drawn by another program"}
    return {
        "split": spec.split,
        "limit": spec.limit,
        "steps": spec.steps,
        "guidance": spec.guidance,
        "images": spec.images or suite.images,
        "seed": spec.seed,
        "sampler": "euler-ode",
        "model": recipe.model.pretrained,
    }


def show_table(progress: Progress, results: Mapping[str, Result], title: str) -> None:
    """Show the headlines, one row a suite; ``~`` marks a figure that the reference scorer would not give."""
    rows = [
        (name, ("" if r.get("exact", True) else "~") + f"{r['mean']:.4f}", _error(r), r["n"], _published(r))
        for name, r in results.items()
    ]
    columns = 5 if any(row[4] for row in rows) else 4
    header = ("suite", "mean", "± s.e.", "images", "published")[:columns]
    progress.table(title, header, [row[:columns] for row in rows])


def _with_groups(requests: Requests, results: dict[str, Result]) -> dict[str, Result]:
    for group in requests.groups:
        names = {suite.name for suite in group.suites} | {suite.name.split("[")[0] for suite in group.suites}
        members = {name: result for name, result in results.items() if name in names}
        combined = group.combine(members) if group.combine is not None and members else None
        if combined is not None:
            results = {**results, group.name: combined}
    return results


def _error(result: Result) -> str:
    return "" if result.get("stderr") is None else f"{result['stderr']:.4f}"


def _published(result: Result) -> str:
    return ", ".join(f"{model} {value:g}" for model, value in result.get("published", {}).items())
