"""``flowopd coldstart``: supervised fine-tuning on the teachers' own best trajectories, mixed over tasks."""

from __future__ import annotations

from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.recipe import ColdstartRecipe
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.data import make_drawer, make_rewards, make_sampler
from flowopd_cli.stages.training.fit import Course, train_policy
from flowopd_cli.stages.training.model import Roles, load_model
from flowopd_cli.stages.training.prepare import prepare
from flowopd_cli.stages.training.watch import make_watch
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import supervised


def run(
    recipe: ColdstartRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Every teacher draws the prompts of its tasks; the policy learns to draw the best picture of each group."""
    train, sft = recipe.train, recipe.sft
    drawer, prompts = make_drawer(recipe.prompts, train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = make_rewards(recipe.rewards, prompts) if recipe.rewards else None
    watch = make_watch(recipe, rewards)
    model = load_model(recipe.model, recipe.adapter.targets)
    roles = Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    teachers = roles.add_teachers(recipe.teachers, recipe.sampling.guidance, recipe.model)
    prepare(recipe, run, roles, prompts, watch, progress)
    sampler = make_sampler(model, recipe.sampling)
    progress.note(f"drawing {sft.samples} pictures from {len(teachers)} teachers")
    draws, batch = range(-(-sft.samples // train.groups)), train.rollout_batch
    best = [supervised.best_of_group(model, sampler, drawer(i), teachers, rewards, batch=batch) for i in draws]
    data = supervised.Pictures.of(best)
    if not data.prompts:
        raise RewardError("no picture of the teachers could be scored: nothing to learn from")

    def experience(iteration: int):
        noise = {"seed": recipe.seed + iteration, "mean": sft.logit_mean, "std": sft.logit_std}
        rows = supervised.sft_rows(data, sft.batch, **noise)
        own = rows[drawer.rank :: drawer.processes]
        return [[own[i : i + train.micro] for i in range(0, len(own), train.micro)]], {}

    course = Course("coldstart", experience, prompts, watch)
    figures = train_policy(recipe, model, run, progress, course, resume=resume)
    return {"metrics": {"pictures": len(data.prompts), **figures}}
