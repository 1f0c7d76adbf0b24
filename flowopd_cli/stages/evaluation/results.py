"""Rows of scored pictures, or scores of official scorers, turned into results, a table and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.journal import key_of
from flowopd_cli.stages.evaluation.requests import Wanted
from flowopd_cli.stages.evaluation.suites import Asked
from flowopd_cli.suites.base import MissingScores, Result, Row, Suite, summarize
from flowopd_cli.system.progress import Progress


def in_order(rows: Sequence[tuple[str, Row]], wanted: Sequence[Wanted]) -> dict[str, list[Row]]:
    """Rows of each suite in the order of its prompts, whichever process and batch they came from."""
    order = {item.key: number for number, item in enumerate(wanted)}
    found: dict[str, list[Row]] = {}
    for name, row in rows:
        found.setdefault(name, []).append(row)
    return {name: sorted(own, key=lambda row: order[key_of(row)]) for name, own in found.items()}


def results(
    asked: Asked, rows: Mapping[str, list[Row]], made: Mapping[str, Reward], recipe: EvalRecipe
) -> dict[str, Result]:
    """Figures of every suite, then of every group."""
    found = {
        suite.name: summarize(suite, rows[suite.name], protocol(recipe, suite), made[suite.name])
        for suite in asked.suites
    }
    return _with_groups(asked, found)


def imported(asked: Asked, folder: Path) -> dict[str, Result]:
    """Figures that official scorers wrote under ``folder``.

    Raises:
        RecipeError: none of the suites finds such files.
        ArtifactError: one of them is damaged.
    """
    found: dict[str, Result] = {}
    absent: list[str] = []
    for suite in asked.suites:
        try:
            read = suite.imported(folder) if suite.imported is not None else None
        except MissingScores as error:
            absent.append(str(error))
            continue
        if read is not None:
            found[read["suite"]] = read
    if not found:
        names = ", ".join(suite.name for suite in asked.suites)
        why = f": {absent[0]}" if absent else ""
        raise RecipeError(f"--import-scores: no official scores that could be read for {names}{why}")
    return _with_groups(asked, found)


def protocol(recipe: EvalRecipe, suite: Suite) -> dict[str, Any]:
    """How the pictures of a suite were made."""
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


def table(progress: Progress, found: Mapping[str, Result], title: str) -> None:
    """The headline figures, one row a suite; ``~`` marks figures that are not those of the reference scorer."""
    rows = [
        (name, ("" if r.get("exact", True) else "~") + f"{r['mean']:.4f}", _error(r), r["n"], _published(r))
        for name, r in found.items()
    ]
    shown = 5 if any(row[4] for row in rows) else 4
    progress.table(title, ("suite", "mean", "± s.e.", "images", "published")[:shown], [row[:shown] for row in rows])


def _with_groups(asked: Asked, found: dict[str, Result]) -> dict[str, Result]:
    for group in asked.groups:
        names = {suite.name for suite in group.suites} | {suite.name.split("[")[0] for suite in group.suites}
        own = {name: result for name, result in found.items() if name in names}
        whole = group.combine(own) if group.combine is not None and own else None
        if whole is not None:
            found = {**found, group.name: whole}
    return found


def _error(result: Result) -> str:
    return "" if result.get("stderr") is None else f"{result['stderr']:.4f}"


def _published(result: Result) -> str:
    return ", ".join(f"{model} {value:g}" for model, value in result.get("published", {}).items())
