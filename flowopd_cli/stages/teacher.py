"""``flowopd teacher``: single-reward (or weighted) GRPO of one adapter."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from flowopd_cli.recipe import TeacherRecipe
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.data import in_background, iteration_sampler, make_drawer, make_rewards, make_sampler
from flowopd_cli.stages.training.fit import Course, train_policy
from flowopd_cli.stages.training.lengths import check_lengths
from flowopd_cli.stages.training.model import Roles, encode_ahead, load_model
from flowopd_cli.stages.training.resume import prompts_digest
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import collect, objectives
from flowopd_cli.train.fresh_groups import with_fresh_groups


def run(
    recipe: TeacherRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Rollout, rewards, advantages, clipped surrogate; the adapter ends in ``adapter/``."""
    train, grpo = recipe.train, recipe.grpo
    drawer, prompts = make_drawer(recipe.prompts, train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = make_rewards(recipe.rewards, prompts)
    model = load_model(recipe.model, recipe.adapter.targets)
    roles = Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    check_lengths(recipe, model, chain.from_iterable(prompts.values()), progress)
    run.declare(roles.inputs(recipe.model, prompts_digest(prompts)))
    encode_ahead(model, prompts)
    base = collect.Teacher(None, recipe.sampling.guidance) if grpo.beta else None
    grader = collect.Grader(model, partial(in_background, rewards), train.rollout_batch, base)

    def experience(iteration: int):
        sampler, draw = iteration_sampler(model, recipe, iteration), drawer(iteration)
        rolled = grader(sampler, draw)
        scores = collect.scores_of_all(rolled, draw.partition)
        figures = collect.reward_figures(scores)
        if train.resample_flat:
            rolled, replaced = with_fresh_groups(
                rolled,
                scores,
                partial(grader, sampler),
                partial(drawer.fresh, iteration),
                most=train.resample_flat,
                partition=draw.partition,
            )
            scores = collect.scores_of_all(rolled, draw.partition) if replaced else scores
            figures["resampled_groups"] = float(replaced)
        rolled = collect.with_advantages(
            rolled, std=grpo.std, clip=grpo.adv_clip, partition=draw.partition, scores=scores
        )
        if not scores.result.valid.any():
            return [], figures
        seed = recipe.seed + iteration
        return collect.step_batches(rolled, sampler, train.updates, train.micro, seed, draw.partition), figures

    objective = objectives.grpo(model, make_sampler(model, recipe.sampling), clip=grpo.clip, beta=grpo.beta)
    course = Course(f"teacher {'+'.join(r.name for r in recipe.rewards)}", experience, objective, prompts)
    return {"metrics": train_policy(recipe, model, run, progress, course, resume=resume)}
