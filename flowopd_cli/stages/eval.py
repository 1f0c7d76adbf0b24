"""``flowopd eval``: held-out prompts, fixed seeds, suite scores with their standard errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from flowopd_cli.models.base import LoadedModel
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.evaluations import outcome
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.drawing import draw_images, ode_sampler
from flowopd_cli.stages.evaluation.folder import write_samples
from flowopd_cli.stages.evaluation.journal import Batch, Scored, Scorer
from flowopd_cli.stages.evaluation.parts import Part, make_parts, scored_name
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests
from flowopd_cli.stages.evaluation.results import imported, rows_by_suite, show, summarize_all
from flowopd_cli.stages.evaluation.shared import Shared
from flowopd_cli.stages.evaluation.suites import plan_requests
from flowopd_cli.stages.training.lengths import check_lengths
from flowopd_cli.stages.training.model import Roles, encode_ahead, load_model
from flowopd_cli.suites.base import Result, image_seed
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import remove
from flowopd_cli.system.progress import Progress


def run(
    recipe: EvalRecipe,
    run: RunDir,
    progress: Progress,
    *,
    adapters: Adapters | None = None,
    resume: bool = False,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Draw each picture once for each guidance, however many suites request it, and score every suite.

    ``shared`` has the requests, if the caller planned them, and what earlier evaluations of other adapters loaded.
    """
    shared = shared or Shared(plan_requests(recipe))
    if recipe.eval.import_scores is not None:
        results = {"": imported(shared.requests, Path(recipe.eval.import_scores))}
    else:
        results = evaluate(recipe, run, progress, adapters or Adapters(), shared)
    if GROUP.rank:
        return {"suites": {}}
    for part, by_suite in results.items():
        for name, result in by_suite.items():
            run.write_eval(name, json.dumps(result, indent=1), part)
    show(progress, recipe.eval, results, scored_name(recipe))
    result = outcome(recipe.eval, results)
    best = result.get("best_guidance")
    return result if best is None else {**result, "metrics": {"best_guidance": best}}


def evaluate(
    recipe: EvalRecipe, run: RunDir, progress: Progress, adapters: Adapters, shared: Shared
) -> dict[str, dict[str, Result]]:
    """The results of every suite by part, one for each guidance; empty in all processes but the first.

    Pictures and rows of an earlier start count. The model is loaded once, for the first picture that is missing.
    """
    requests, rewards = shared.requests, shared.rewards
    parts = make_parts(recipe, requests, rewards, run, adapters)
    artist = Artist(recipe, parts, run, progress, adapters, shared)
    results = {}
    for part in parts:
        rows = score(part, requests, rewards, artist, progress)
        if GROUP.rank == 0:
            part.folder.write_sheets(requests.pictures)
            write_samples(run, requests.pictures, part.folder, recipe.eval.keep_images, part.name)
            for name, of_suite in rows.items():
                run.write_rows(name, of_suite, part.name)
            results[part.name] = summarize_all(requests, rows, rewards, part.recipe)
    if GROUP.rank == 0:
        remove(run.scored_dir)
    return results


def score(
    part: Part, requests: Requests, rewards: Mapping[str, Reward], artist: Artist, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """The rows of every suite of a part, from all processes."""
    scored: list[Scored] = [*part.scored]
    with Scorer(requests.suites, rewards, part.journal) as scorer:
        for batch in pictures(part, artist, progress):
            scorer.submit(*batch)
        scored += scorer.finish()
    scored = [row for rows in GROUP.gather(scored) for row in rows]
    return rows_by_suite(scored, requests.pictures)


def pictures(part: Part, artist: Artist, progress: Progress) -> Iterator[Batch]:
    """The unscored pictures of a part in batches: those in the folder first, then the others as they are drawn."""
    size, present = part.recipe.eval.batch, part.present
    progress.start(-(-len(present) // size) - (-len(part.missing) // size), f"eval {part.title}")
    for start in range(0, len(present), size):
        batch = present[start : start + size]
        yield batch, [part.folder.read(request) for request in batch]
        progress.step({})
    if part.missing or part.recipe.model.shard:  # a sharded model is loaded by all processes together
        for batch in artist.draw(part):
            yield batch
            progress.step({})


class Artist:
    """The model that draws the missing pictures of all parts, loaded for the first of them."""

    def __init__(
        self,
        recipe: EvalRecipe,
        parts: Sequence[Part],
        run: RunDir,
        progress: Progress,
        adapters: Adapters,
        shared: Shared,
    ) -> None:
        self._recipe, self._parts, self._run = recipe, parts, run
        self._progress, self._adapters, self._shared = progress, adapters, shared

    def draw(self, part: Part) -> Iterator[Batch]:
        """Draw the missing pictures of a part and write them to its folder, a batch at a time."""
        spec = part.recipe.eval
        part.folder.prepare(part.missing)
        model, adapter = self._loaded
        sampler = ode_sampler(model, spec.steps, part.guidance)
        for start in range(0, len(part.missing), spec.batch):
            batch = part.missing[start : start + spec.batch]
            seeds = [image_seed(spec.seed, request.prompt.id, request.place.index) for request in batch]
            images = draw_images(model, sampler, [request.prompt for request in batch], seeds, adapter, spec.batch)
            yield batch, part.folder.write(batch, images)

    @cached_property
    def _loaded(self) -> tuple[LoadedModel, str | None]:
        """The model with the prompts of all missing pictures encoded, and the name of its adapter."""
        recipe = self._recipe
        missing: list[PictureRequest] = [request for part in self._parts for request in part.missing]
        model = self._shared.model = self._shared.model or load_model(recipe.model, ())
        for earlier in model.adapters.names:
            model.adapters.remove(earlier)
        check_lengths(recipe, model, [request.prompt for request in missing], self._progress)
        roles = Roles(model, self._adapters)
        adapter = roles.add_frozen("policy", recipe.adapter or "base")
        self._run.declare(roles.inputs(recipe.model))
        model.adapters.fold(adapter, undo=self._shared.several)
        encode_ahead(model, (request.prompt for request in missing))
        return model, adapter
