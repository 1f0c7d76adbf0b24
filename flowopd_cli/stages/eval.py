"""``flowopd eval``: held-out prompts, fixed seeds, suite scores with their standard errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.manifest import Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation import results as outcome
from flowopd_cli.stages.evaluation import suites as suite_tools
from flowopd_cli.stages.evaluation.folder import Picture, PictureFolder
from flowopd_cli.stages.evaluation.journal import Journal, Scored
from flowopd_cli.stages.evaluation.pictures import keep, settings, whole
from flowopd_cli.stages.evaluation.requests import Wanted, digests, plan
from flowopd_cli.stages.evaluation.scorer import Scorer
from flowopd_cli.stages.training import model as _model
from flowopd_cli.stages.training.samples import draw_images, ode_sampler, to_bytes
from flowopd_cli.suites.base import Result, image_seed
from flowopd_cli.system.distributed import everyone, rank_and_world
from flowopd_cli.system.progress import Progress


def run(recipe: EvalRecipe, run: RunDir, progress: Progress, *, resume: bool = False) -> dict[str, Any]:
    """Draw each (prompt, image index) once, whatever number of suites asks for it, and score every suite."""
    suites = suite_tools.load(recipe)
    if recipe.eval.import_scores is not None:
        results = outcome.imported(suites, Path(recipe.eval.import_scores))
    else:
        results = judged(recipe, suites, run, progress)
    if rank_and_world()[0]:
        return {"suites": {}}
    for name, result in results.items():
        run.write_eval(name, json.dumps(result, indent=1))
    outcome.table(progress, results, recipe.adapter or "base")
    figures = {name: {key: r.get(key) for key in ("mean", "stderr", "n", "exact")} for name, r in results.items()}
    return {"suites": figures}


def judged(recipe: EvalRecipe, asked: suite_tools.Asked, run: RunDir, progress: Progress) -> dict[str, Result]:
    """Results of every suite from pictures: those that are there, and those that are drawn now."""
    rank, world = rank_and_world()
    wanted = plan(asked.suites, recipe.eval)
    rewards = suite_tools.rewards(asked.suites, wanted)
    foreign = recipe.eval.pictures is not None
    folder = PictureFolder(Path(str(recipe.eval.pictures)) if foreign else run.images_dir, foreign)
    if foreign:
        folder.check(wanted)
    else:
        parents = [AdapterRef.parse(recipe.adapter or "base").parent("policy")]
        folder.claim(settings(recipe, parents), digests(asked.suites, recipe.eval.split))
    journal = Journal(run, rank, folder, asked.suites, rewards)

    def work() -> list[Scored]:
        known = {item.key: journal.rows(item) for item in wanted[rank::world]}
        todo = [item for item in wanted[rank::world] if known[item.key] is None]
        with Scorer(asked.suites, rewards, journal) as scorer:
            for part, pictures in supply(recipe, todo, folder, run, progress):
                scorer.submit(part, pictures)
            return [row for old in known.values() for row in old or ()] + scorer.finish()

    rows = [row for part in everyone(work()) for row in part]
    if rank:
        return {}
    keep(run, wanted, folder, recipe.eval.keep_images)
    ordered = outcome.in_order(rows, wanted)
    for name, own in ordered.items():
        run.write_rows(name, own)
    journal.remove()
    return outcome.results(asked, ordered, rewards, recipe)


def supply(
    recipe: EvalRecipe, wanted: Sequence[Wanted], folder: PictureFolder, run: RunDir, progress: Progress
) -> Iterator[tuple[Sequence[Wanted], list[Picture]]]:
    """Batches of pictures: what lies in the folder first, then the rest, drawn and kept."""
    batch = recipe.eval.batch
    there: list[Wanted] = []
    missing: list[Wanted] = []
    for item in wanted:
        (missing if folder.find(item) is None else there).append(item)
    progress.start(-(-len(there) // batch) - (-len(missing) // batch), f"eval {recipe.adapter or 'base'}")
    for start in range(0, len(there), batch):
        part = there[start : start + batch]
        yield part, [folder.read(item) for item in part]
        progress.step({})
    yield from draw(recipe, missing, folder, run, progress)


def draw(
    recipe: EvalRecipe, missing: Sequence[Wanted], folder: PictureFolder, run: RunDir, progress: Progress
) -> Iterator[tuple[Sequence[Wanted], list[Picture]]]:
    """Pictures that are not there yet, under the recipe's adapter, a batch at a time."""
    if not missing and not recipe.model.shard:
        return
    spec = recipe.eval
    model = _model.load_model(recipe.model, ())
    parents: list[Parent] = []
    adapter = _model.add_frozen(model, "policy", recipe.adapter or "base", parents)
    run.declare(_model.inputs(recipe.model, model, parents))
    model.adapters.fold(adapter)
    _model.encode_ahead(model, {"all": list({w.prompt.text: w.prompt for w in missing}.values())})
    sampler = ode_sampler(model, spec.steps, spec.guidance)
    for start in range(0, len(missing), spec.batch):
        part = missing[start : start + spec.batch]
        seeds = [image_seed(spec.seed, item.prompt.id, item.place.index) for item in part]
        drawn = to_bytes(whole(draw_images(model, sampler, [w.prompt for w in part], seeds, adapter, spec.batch), part))
        for item, picture in zip(part, drawn, strict=True):
            folder.write(item, picture)
        yield part, list(drawn)
        progress.step({})
