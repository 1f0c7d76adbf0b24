"""``flowopd eval``: held-out prompts, fixed seeds, suite scores with their standard errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.drawing import draw_images, ode_sampler
from flowopd_cli.stages.evaluation.folder import PictureFolder, picture_settings, write_samples
from flowopd_cli.stages.evaluation.journal import Batch, Journal, Scored, Scorer
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests
from flowopd_cli.stages.evaluation.results import imported, rows_by_suite, show_table, summarize_all
from flowopd_cli.stages.evaluation.suites import make_rewards, plan_requests
from flowopd_cli.stages.training.lengths import check_lengths
from flowopd_cli.stages.training.model import Roles, encode_ahead, load_model
from flowopd_cli.suites.base import Result, image_seed
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.progress import Progress


def run(
    recipe: EvalRecipe,
    run: RunDir,
    progress: Progress,
    *,
    adapters: Adapters | None = None,
    resume: bool = False,
    requests: Requests | None = None,
) -> dict[str, Any]:
    """Draw each picture once, however many suites request it, and score every suite.

    ``requests`` are those of :func:`~flowopd_cli.stages.evaluation.suites.plan_requests`, if the caller has them.
    """
    requests = requests or plan_requests(recipe)
    if recipe.eval.import_scores is not None:
        results = imported(requests, Path(recipe.eval.import_scores))
    else:
        results = evaluate(recipe, requests, run, progress, adapters or Adapters())
    if GROUP.rank:
        return {"suites": {}}
    for name, result in results.items():
        run.write_eval(name, json.dumps(result, indent=1))
    show_table(progress, results, recipe.adapter or "base")
    figures = {name: {key: r.get(key) for key in ("mean", "stderr", "n", "exact")} for name, r in results.items()}
    return {"suites": figures}


def evaluate(
    recipe: EvalRecipe, requests: Requests, run: RunDir, progress: Progress, adapters: Adapters
) -> dict[str, Result]:
    """The result of every suite; empty in all processes but the first. Pictures and rows of an earlier start count."""
    rewards = make_rewards(requests)
    if recipe.eval.pictures is not None:
        folder = PictureFolder(Path(recipe.eval.pictures), foreign=True)
    else:
        folder = PictureFolder(run.images_dir)
        parents = [adapters[recipe.adapter or "base"].parent("policy")]
        folder.claim(picture_settings(recipe, parents), requests.digests)
    journal = Journal(run, GROUP.rank, folder, requests.suites, rewards)
    local = [(request, journal.rows(request)) for request in requests.pictures[GROUP.rank :: GROUP.size]]
    scored: list[Scored] = [row for _, rows in local if rows is not None for row in rows]
    unscored = [request for request, rows in local if rows is None]
    with Scorer(requests.suites, rewards, journal) as scorer:
        for batch in pictures(recipe, unscored, folder, run, progress, adapters):
            scorer.submit(*batch)
        scored += scorer.finish()
    scored = [row for part in GROUP.gather(scored) for row in part]
    if GROUP.rank:
        return {}
    write_samples(run, requests.pictures, folder, recipe.eval.keep_images)
    by_suite = rows_by_suite(scored, requests.pictures)
    for name, rows in by_suite.items():
        run.write_rows(name, rows)
    journal.remove()
    return summarize_all(requests, by_suite, rewards, recipe)


def pictures(
    recipe: EvalRecipe,
    requests: Sequence[PictureRequest],
    folder: PictureFolder,
    run: RunDir,
    progress: Progress,
    adapters: Adapters,
) -> Iterator[Batch]:
    """The pictures in batches: those in the folder first, then the others as they are drawn."""
    size, files = recipe.eval.batch, [(request, folder.find(request)) for request in requests]
    present = [request for request, file in files if file is not None]
    missing = [request for request, file in files if file is None]
    progress.start(-(-len(present) // size) - (-len(missing) // size), f"eval {recipe.adapter or 'base'}")
    for start in range(0, len(present), size):
        batch = present[start : start + size]
        yield batch, [folder.read(request) for request in batch]
        progress.step({})
    if missing or recipe.model.shard:  # a sharded model is loaded by all processes together
        for batch in draw(recipe, missing, folder, run, progress, adapters):
            yield batch
            progress.step({})


def draw(
    recipe: EvalRecipe,
    requests: Sequence[PictureRequest],
    folder: PictureFolder,
    run: RunDir,
    progress: Progress,
    adapters: Adapters,
) -> Iterator[Batch]:
    """Draw pictures under the recipe's adapter and write them to the folder, a batch at a time."""
    spec = recipe.eval
    folder.prepare(requests)
    model = load_model(recipe.model, ())
    check_lengths(recipe, model, [request.prompt for request in requests], progress)
    roles = Roles(model, adapters)
    adapter = roles.add_frozen("policy", recipe.adapter or "base")
    run.declare(roles.inputs(recipe.model))
    model.adapters.fold(adapter)
    encode_ahead(model, (request.prompt for request in requests))
    sampler = ode_sampler(model, spec.steps, spec.guidance)
    for start in range(0, len(requests), spec.batch):
        batch = requests[start : start + spec.batch]
        seeds = [image_seed(spec.seed, request.prompt.id, request.place.index) for request in batch]
        images = draw_images(model, sampler, [request.prompt for request in batch], seeds, adapter, spec.batch)
        yield batch, folder.write(batch, images)
