"""The report of one run: what was run and from what, its figures, curves, pictures, timings and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import FlowOPDError
from flowopd_cli.reports import curves
from flowopd_cli.reports import pictures as strips
from flowopd_cli.reports.entries import Entry
from flowopd_cli.reports.page import Link, Listing, Page, link, shortened, span
from flowopd_cli.reports.series import Rows, column, finite, number
from flowopd_cli.reports.table import files, table
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import Evaluation, evaluation, protocol
from flowopd_cli.runs.layout import go_on
from flowopd_cli.runs.manifest import Manifest, Parent, is_run, now, status_now
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import plain
from flowopd_cli.system.text import duration

EVENTS = 40
WHAT = {
    "teacher": "A teacher trained with GRPO",
    "coldstart": "A cold start: fine-tuning on the teachers' best pictures",
    "merge": "Adapters merged into one",
    "distill": "Multi-teacher on-policy distillation",
    "eval": "An evaluation on held-out prompts",
    "push": "A model made ready for the Hub",
}
NAMES = {
    "retained_energy": "energy kept",
    "relative_error": "relative error",
    "difference": "largest difference from plain diffusers, 0 to 1",
    "pictures": "pictures learned from",
    "best_iteration": "best iteration",
}


@dataclass(frozen=True)
class Ending:
    """How a run ends that is about to be closed: what its manifest will say."""

    status: str
    metrics: Mapping[str, Any] = field(default_factory=dict)


def page(run: RunDir, target: Path, ending: Ending | None = None) -> Page:
    """The report of a run as a page at ``target``; ``ending`` is that of a run whose manifest is still open.

    Raises:
        ArtifactError: manifest, recipe, metrics or results are damaged.
    """
    manifest, recipe = _closed(run, ending), run.recipe()
    rows = run.rows()
    scored = evaluation(run) if manifest.status == "done" or ending is None else None
    entries = [Entry(_scored_name(manifest), None, scored)] if scored is not None and scored.suites else []
    samples = strips.over_time(run) or _drawn(run)
    return Page(
        title=run.path.resolve().name,
        lead=f"{WHAT.get(manifest.stage, manifest.stage)}{_of(recipe)}.",
        facts=_facts(manifest, recipe, rows),
        warnings=_warnings(run, manifest),
        table=table(entries),
        table_note=_protocol(scored),
        downloads=files(entries),
        charts=curves.of_run(recipe, rows) if rows else (),
        grids=[samples] if samples else (),
        listings=[part for part in (_lineage(run, manifest, target), _figures(manifest), _times(rows, recipe)) if part],
        recipe=recipes.dump(recipe),
    )


def _closed(run: RunDir, ending: Ending | None) -> Manifest:
    manifest = run.manifest()
    if ending is None:
        return manifest.model_copy(update={"status": status_now(run.path)})
    metrics = {**manifest.metrics, **plain(ending.metrics)}
    return manifest.model_copy(update={"status": ending.status, "finished": now(), "metrics": metrics})


def _of(recipe: recipes.Recipe) -> str:
    """On what: the rewards of a teacher, the number of teachers, the suites."""
    if isinstance(recipe, recipes.TeacherRecipe):
        return " on " + " + ".join(spec.name for spec in recipe.rewards)
    if isinstance(recipe, recipes.DistillRecipe):
        return " of " + ", ".join(recipe.routing)
    return f" ({', '.join(recipe.eval.suites)})" if isinstance(recipe, recipes.EvalRecipe) else ""


def _facts(manifest: Manifest, recipe: recipes.Recipe, rows: Rows) -> list[tuple[str, str]]:
    packages = manifest.environment.packages
    told = [("status", manifest.status), ("base", manifest.base.ref if manifest.base else recipe.model.pretrained)]
    if isinstance(recipe, recipes.TrainedRecipe):
        told.append(("iterations", f"{len(rows)} of {recipe.train.iterations}"))
    told += [
        ("started", manifest.created[:16].replace("T", " ") + (" UTC" if manifest.created.endswith("+00:00") else ""))
    ]
    elapsed = span(manifest)
    told += [("took", duration(elapsed))] if elapsed is not None else []
    told += [("seed", str(recipe.seed)), ("recipe", manifest.recipe_sha)]
    told += [("flowopd", manifest.code_version), ("torch", packages.get("torch", "?"))]
    return told


def _warnings(run: RunDir, manifest: Manifest) -> list[tuple[str, str]]:
    """What the events tell, and what is left to do for a run that is not through."""
    found = []
    if manifest.status in {"interrupted", "failed"}:
        found.append((manifest.status, f"go on with: {go_on(manifest.stage, run.path)}"))
    events = run.events()
    for event in events[:EVENTS]:
        found.append((f"iteration {event.get('iteration', '?')}", str(event.get("text", ""))))
    more = len(events) - EVENTS
    return found + ([("", f"{more} more are in {run.events_file.name}")] if more > 0 else [])


def _lineage(run: RunDir, manifest: Manifest, target: Path) -> Listing | None:
    rows = []
    for parent in manifest.parents:
        place, sha = local(run, parent), (parent.sha256 or "")[:12]
        name = shortened(parent.ref)
        rows.append((parent.role.replace("_", " "), link(name, place, target) if place else Link(name), sha))
    if manifest.base is not None:
        rows.append(("base", Link(_base_name(manifest)), (manifest.base.sha256 or "")[:12]))
    return Listing("Made from", ("part", "reference", "sha256"), tuple(rows)) if rows else None


def _base_name(manifest: Manifest) -> str:
    ref = manifest.base.ref if manifest.base else ""
    return Path(ref).name if Path(ref).is_absolute() else ref


def local(run: RunDir, parent: Parent) -> Path | None:
    """The run of a parent: where it was, or beside the run where both were moved."""
    with suppress(FlowOPDError, OSError):
        reference = AdapterRef.parse(parent.ref)
        for place in (Path(reference.location), run.path.resolve().parent / Path(reference.location).name):
            if reference.location and reference.kind != "hub" and is_run(place):
                return place
    return None


def _figures(manifest: Manifest) -> Listing | None:
    """What a run that has no iterations says of itself: a merge's error, a push's check."""
    if manifest.stage not in {"merge", "push", "coldstart"}:
        return None
    told = [
        (NAMES.get(name, name), f"{value:.5g}")
        for name, value in ((name, number(found)) for name, found in manifest.metrics.items())
        if value == value
    ]
    return Listing("Figures", ("figure", "value"), tuple(told), frozenset({1})) if told else None


def _times(rows: Rows, recipe: recipes.Recipe) -> Listing | None:
    collect, learn = (finite(column(rows, f"seconds_{part}")) for part in ("collect", "learn"))
    each = finite(curves.seconds(rows))
    if not each:
        return None
    parts = {"collect": collect, "learn": learn, "both": each}
    told = [(name, duration(sum(v)), f"{median(v):.3g} s", f"{max(v):.3g} s") for name, v in parts.items() if v]
    count = curves.pictures_per_iteration(recipe)
    rate = count * len(each) / sum(each) if count and sum(each) > 0 else None
    note = "" if rate is None else f"{_rate(rate)} pictures per second over the whole run."
    columns = ("part", "in all", "median iteration", "longest")
    return Listing("Timings", columns, tuple(told), frozenset({1, 2, 3}), note=note)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _scored_name(manifest: Manifest) -> str:
    ref = manifest.parents[0].ref if manifest.parents else "given pictures"
    return Path(ref).name or ref


def _protocol(scored: Evaluation | None) -> str:
    return f"Mean ± standard error over prompts. Protocol: {protocol(scored)}." if scored is not None else ""


def _drawn(run: RunDir) -> strips.Grid | None:
    """The row of pictures that an evaluation kept, or that a push shows."""
    file = run.image_file("eval")
    if not file.is_file():
        return None
    prompts = strips.shown_prompts(run)
    found = strips.within([strips.Strip("", file)], len(prompts))
    caption = "The first picture of prompts spread over the suites."
    return strips.grid("Pictures", caption, prompts, found) if found else None
