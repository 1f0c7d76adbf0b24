"""``flowopd eval``: held-out prompts, fixed seeds, suite scores with their standard errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from flowopd_cli import registry
from flowopd_cli.core.types import Prompt
from flowopd_cli.progress import Progress
from flowopd_cli.recipe import SD3_TARGETS, EvalRecipe
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _model
from flowopd_cli.stages._samples import draw_images, grid, ode_sampler, to_bytes
from flowopd_cli.suites.base import Suite, evaluate, image_seed

Key = tuple[str, int]
Pictures = dict[Key, UInt8[Tensor, "3 H W"]]


def run(recipe: EvalRecipe, run: RunDir, progress: Progress, *, resume: bool = False) -> dict[str, Any]:
    """Draw each (prompt, image index) once, whatever number of suites asks for it, and score every suite."""
    suites: list[Suite] = [registry.SUITES.load(name)() for name in recipe.eval.suites]
    wanted = {suite.name: suite_prompts(suite, recipe) for suite in suites}
    unique = {prompt.id: prompt for prompts in wanted.values() for prompt in prompts}
    images = draw(recipe, unique, run, progress)
    results = {suite.name: score(suite, wanted[suite.name], images, recipe) for suite in suites}
    for name, result in results.items():
        run.write_eval(name, json.dumps(result, indent=1))
    keep(run, list(unique.values()), images, recipe.eval.keep_images)
    table(progress, results, recipe.adapter or "base")
    return {"suites": {name: {k: r[k] for k in ("mean", "stderr", "n")} for name, r in results.items()}}


def draw(recipe: EvalRecipe, unique: Mapping[str, Prompt], run: RunDir, progress: Progress) -> Pictures:
    """Every picture that the suites ask for, under the recipe's adapter."""
    spec = recipe.eval
    model = _model.load_model(recipe.model, SD3_TARGETS, run)
    parents: list[Any] = []
    adapter = _model.add_frozen(model, "policy", recipe.adapter or "base", parents)
    run.set_parents(parents)
    _model.encode_ahead(model, {"all": list(unique.values())})
    sampler = ode_sampler(model, spec.steps, spec.guidance)
    keys = [(prompt_id, index) for prompt_id in unique for index in range(spec.images)]
    progress.start(-(-len(keys) // spec.batch), f"eval {recipe.adapter or 'base'}")
    images: Pictures = {}
    for start in range(0, len(keys), spec.batch):
        part = keys[start : start + spec.batch]
        seeds = [image_seed(spec.seed, *key) for key in part]
        drawn = draw_images(model, sampler, [unique[k[0]] for k in part], seeds, adapter, spec.batch)
        images |= dict(zip(part, to_bytes(drawn), strict=True))
        progress.step({})
    return images


def keep(run: RunDir, prompts: Sequence[Prompt], images: Pictures, count: int) -> None:
    """Keep the first picture of ``count`` prompts spread over the whole list, in one row, and their texts."""
    count = min(count, len(prompts))
    chosen = [prompts[i * len(prompts) // count] for i in range(count)]
    run.write_eval("prompts", json.dumps([prompt.text for prompt in chosen]))
    if chosen:
        run.write_image("eval", grid(torch.stack([images[prompt.id, 0] for prompt in chosen]), count))


def suite_prompts(suite: Suite, recipe: EvalRecipe) -> list[Prompt]:
    """The suite's prompts of the recipe's split; with a ``limit`` that many, spread evenly over the list."""
    prompts, limit = suite.prompts(recipe.eval.split), recipe.eval.limit
    if limit is None or limit >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def score(suite: Suite, prompts: Sequence[Prompt], images: Pictures, recipe: EvalRecipe) -> dict[str, Any]:
    """Rewards of a suite over its pictures, aggregated; protocol and per-image rows included."""
    spec = recipe.eval
    keys = [(prompt.id, index) for prompt in prompts for index in range(spec.images)]
    repeated = [prompt for prompt in prompts for _ in range(spec.images)]
    stack = torch.stack([images[key] for key in keys])
    protocol = {"split": spec.split, "steps": spec.steps, "guidance": spec.guidance, "images": spec.images}
    protocol |= {"seed": spec.seed, "sampler": "euler-ode", "model": recipe.model.pretrained}
    return evaluate(suite, stack, repeated, [index for _, index in keys], protocol)


def table(progress: Progress, results: dict[str, dict[str, Any]], title: str) -> None:
    """The headline figures, one row a suite."""
    rows = [(name, f"{r['mean']:.4f}", f"{r['stderr']:.4f}", r["n"]) for name, r in results.items()]
    progress.table(title, ("suite", "mean", "± s.e.", "images"), rows)
