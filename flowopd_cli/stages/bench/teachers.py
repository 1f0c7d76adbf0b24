"""One iteration of a teacher by several algorithms: the real loop, with a reward that costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.recipe import TeacherRecipe, cost
from flowopd_cli.rewards.base import Reward, RewardInfo, RewardMix, Weighted
from flowopd_cli.stages.bench import clock
from flowopd_cli.stages.bench.measure import machine, where
from flowopd_cli.stages.bench.world import load
from flowopd_cli.stages.teacher import make_experience
from flowopd_cli.stages.training.data import Drawer
from flowopd_cli.stages.training.fit import save_memory
from flowopd_cli.stages.training.objective import make_objective
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.loop import FitSettings, fit
from flowopd_cli.train.recorder import NullRecorder, Recorder

LATE = 10_000  # an iteration at which a slow copy of the policy has the share that it keeps in the end


class _Brightness(Reward):
    info = RewardInfo("brightness", "the mean of a picture", 0, 1)

    def __call__(self, images: Tensor, prompts: object) -> RewardResult:
        """The mean of each picture."""
        total = images.mean((1, 2, 3))
        return RewardResult(total, {}, torch.ones(len(total), dtype=torch.bool))


class _Rows(NullRecorder):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def row(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def run(recipes: Mapping[str, TeacherRecipe], pictures: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """The cost of an iteration of ``pictures``, one group, by the recipes' algorithms; the recipes have one base.

    Rounds of one iteration each, as :func:`clock.interleaved` makes them. ``cpu_seconds`` are those of this process.
    """
    first = next(iter(recipes.values()))
    model = load(first.model, first.adapter.targets)
    save_memory(model, first.train)
    model.adapters.add("policy", first.adapter.rank, first.adapter.alpha, seed=first.seed, trainable=True)
    logs = {name: _Rows() for name in recipes}
    actions = {name: iteration(recipe, model, pictures, logs[name]) for name, recipe in recipes.items()}
    progress.note(f"bench: {pictures} pictures of {', '.join(recipes)}, {where(model.device)}")
    peaks = {name: clock.peak_bytes(action, model.device) for name, action in actions.items()}  # and the warm-up
    progress.start(repeats, "rounds")
    samples = clock.interleaved(actions, repeats, model.device, lambda: progress.step({}))
    progress.done()
    figures = {
        name: {
            "seconds": median(wall for wall, _ in pairs),
            "cpu_seconds": median(cpu for _, cpu in pairs),
            **{
                key: median(row[key] for row in logs[name].rows[1:])
                for key in ("seconds_collect", "seconds_learn", "grad_norm")
            },
            "images_per_second": pictures / median(wall for wall, _ in pairs),
            "peak_memory_bytes": peaks[name],
            "forwards": cost.arithmetic(recipes[name])["transformer forwards per picture"],
            "samples": [list(pair) for pair in pairs],
        }
        for name, pairs in samples.items()
    }
    settings = {"base": first.model.pretrained, "pictures": pictures, "steps": first.sampling.steps}
    return {"algorithms": figures, "machine": machine(model), "settings": settings}


def iteration(
    recipe: TeacherRecipe, model: PipelineModel, pictures: int, recorder: Recorder | None = None
) -> Callable[[], object]:
    """An iteration of one group by a model with a ``policy``, the optimizer step included; its rate is 0."""
    prompts = [Prompt("p0", "prompt number 0", "bench")]
    drawer = Drawer(GroupSampler({"bench": prompts}, {"bench": 1.0}, 1, pictures, recipe.seed), recipe.train.updates)
    rewards = RewardMix([Weighted(_Brightness(), 1.0, None)])
    experience = make_experience(recipe, model, drawer, rewards)
    settings = FitSettings(iterations=1, lr=0.0, updates=cost.updates(recipe), max_grad_norm=recipe.train.max_grad_norm)
    objective = make_objective(recipe, model)
    return partial(fit, model, lambda i: experience(LATE + i), objective, settings, recorder=recorder)
