"""The report of one run: facts, warnings, results, curves, pictures, parents, timings and its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.reports import curves, pictures
from flowopd_cli.reports.entries import Entry, compared_by_guidance, locate
from flowopd_cli.reports.page import Link, Listing, Page, elapsed, link
from flowopd_cli.reports.series import Rows, column, finite, number
from flowopd_cli.reports.table import best_note, files, table
from flowopd_cli.runs.evaluations import by_guidance, protocol
from flowopd_cli.runs.layout import resume_command
from flowopd_cli.runs.manifest import Manifest, now, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import plain
from flowopd_cli.system.redact import public_reference
from flowopd_cli.system.text import duration

MAX_EVENTS = 40
ALGORITHMS = {"grpo": "GRPO", "nft": "DiffusionNFT", "awm": "AWM"}
LABELS = {"retained_energy": "energy retained"}
STAGES = {
    "teacher": "A teacher trained with",
    "coldstart": "A cold start: fine-tuning on the teachers' best pictures",
    "merge": "Adapters merged into one",
    "distill": "Multi-teacher on-policy distillation",
    "eval": "An evaluation on held-out prompts",
    "push": "A model prepared for the Hub",
}


def page(run: RunDir, target: Path, status: str | None = None, metrics: Mapping[str, Any] | None = None) -> Page:
    """The report of a run as a page at ``target``; ``status`` and ``metrics`` are those of a run that ends now."""
    recipe, rows, manifest = run.recipe(), run.rows(), run.manifest()
    state: dict[str, Any] = {"status": status or status_now(run.path)}
    if status is not None:
        state |= {"finished": now(), "metrics": {**manifest.metrics, **plain(metrics or {})}}
    manifest = manifest.model_copy(update=state)
    scores = by_guidance(run) if status in (None, "done") else []
    model = manifest.parents[0].ref if manifest.parents else "external pictures"
    name = Path(model).name or model
    entries = compared_by_guidance([Entry(name, None, one) for one in scores if one.results])
    grid = pictures.over_time(run) or pictures.evaluated(run, scores)
    return Page(
        title=run.path.resolve().name,
        lead=f"{STAGES.get(manifest.stage, manifest.stage)}{_subject(recipe)}.",
        facts=_facts(manifest, recipe, rows),
        warnings=_warnings(run, manifest),
        table=table(entries),
        table_note=(
            f"Mean ± standard error over prompts. Protocol: {protocol(*scores)}.{best_note(entries)}" if scores else ""
        ),
        downloads=files(entries),
        charts=curves.of_run(recipe, rows) if rows else (),
        grids=[grid] if grid else (),
        listings=[*_parents(run, manifest, target), *_metrics(manifest), *_timings(rows, recipe)],
        recipe=recipes.dump(recipe),
    )


def _subject(recipe: recipes.Recipe) -> str:
    if isinstance(recipe, recipes.TeacherRecipe):
        return f" {ALGORITHMS[recipe.algorithm]} on " + " + ".join(spec.name for spec in recipe.rewards)
    if isinstance(recipe, recipes.DistillRecipe):
        return " of " + ", ".join(recipe.routing)
    return f" ({', '.join(recipe.eval.suites)})" if isinstance(recipe, recipes.EvalRecipe) else ""


def _facts(manifest: Manifest, recipe: recipes.Recipe, rows: Rows) -> list[tuple[str, str]]:
    utc = " UTC" if manifest.created.endswith("+00:00") else ""
    trained = isinstance(recipe, recipes.TrainedRecipe)
    facts = {
        "status": manifest.status,
        "base": manifest.base.label if manifest.base else recipe.model.pretrained,
        "iterations": f"{sum(row.get('iteration') != 0 for row in rows)} of {recipe.train.iterations}"
        if trained
        else None,
        "started": manifest.created[:16].replace("T", " ") + utc,
        "took": elapsed(manifest),
        "seed": str(recipe.seed),
        "recipe": manifest.recipe_sha,
        "flowopd": manifest.code_version,
        "torch": manifest.environment.packages.get("torch", "?"),
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _warnings(run: RunDir, manifest: Manifest) -> list[tuple[str, str]]:
    warnings = []
    if manifest.status in {"interrupted", "failed"}:
        warnings.append((manifest.status, f"resume with: {resume_command(manifest.stage, run.path)}"))
    events = run.events()
    warnings += [(f"iteration {e.get('iteration', '?')}", str(e.get("text", ""))) for e in events[:MAX_EVENTS]]
    more = len(events) - MAX_EVENTS
    return warnings + ([("", f"{more} more are in {run.events_file.name}")] if more > 0 else [])


def _parents(run: RunDir, manifest: Manifest, target: Path) -> Iterator[Listing]:
    rows = []
    for parent in manifest.parents:
        path, name = locate(run, parent), public_reference(parent.ref)
        reference = link(name, path, target) if path else Link(name)
        rows.append((parent.role.replace("_", " "), reference, (parent.sha256 or "")[:12]))
    own = ((f"base of {parent.role.replace('_', ' ')}", parent.base) for parent in manifest.parents)
    for part, base in (*own, ("base", manifest.base)):
        if base is not None:
            short = base.model_copy(update={"ref": Path(base.ref).name}) if Path(base.ref).is_absolute() else base
            rows.append((part, short.label, (base.sha256 or "")[:12]))
    if rows:
        yield Listing("Made from", ("part", "reference", "sha256"), tuple(rows))


def _metrics(manifest: Manifest) -> Iterator[Listing]:
    """The metrics of a run without curves, such as a merge's error and a push's check."""
    metrics = {LABELS.get(name, name.replace("_", " ")): number(value) for name, value in manifest.metrics.items()}
    rows = tuple((name, f"{value:.5g}") for name, value in metrics.items() if value == value)
    if rows and manifest.stage in {"merge", "push", "coldstart"}:
        yield Listing("Figures", ("figure", "value"), rows, frozenset({1}))


def _timings(rows: Rows, recipe: recipes.Recipe) -> Iterator[Listing]:
    parts = {part: finite(column(rows, f"seconds_{part}")) for part in ("collect", "learn")}
    both = parts["both"] = finite(curves.seconds(rows))
    parts["watch"] = finite(column(rows, "seconds_watch"))
    if not both:
        return
    cells = [(name, duration(sum(v)), f"{median(v):.3g} s", f"{max(v):.3g} s") for name, v in parts.items() if v]
    count, note = curves.pictures_per_iteration(recipe), ""
    if count and sum(both) > 0:
        note = f"{count * len(both) / sum(both):.4g} pictures per second over the whole run."
    columns = ("part", "in all", "median iteration", "longest")
    yield Listing("Timings", columns, tuple(cells), frozenset({1, 2, 3}), note=note)
