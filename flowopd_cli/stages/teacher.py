"""``flowopd teacher``: one adapter learns one reward, or a weighted sum, by GRPO, DiffusionNFT or AWM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.statistics import latent_norm
from flowopd_cli.core.types import Rollout
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.recipe import AWMSpec, NFTSpec, TeacherRecipe, cost
from flowopd_cli.recipe.tasks import check_tasks
from flowopd_cli.rewards.base import RewardMix
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.data import Drawer, in_background, iteration_sampler, make_drawer, make_rewards
from flowopd_cli.stages.training.fit import Course, train_policy
from flowopd_cli.stages.training.model import Roles, load_model
from flowopd_cli.stages.training.objective import forward_guidance
from flowopd_cli.stages.training.prepare import prepare
from flowopd_cli.stages.training.watch import make_watch
from flowopd_cli.system.progress import Progress
from flowopd_cli.train import collect, forward
from flowopd_cli.train.loop import Experience, MicroBatches
from flowopd_cli.train.redraw import Redraw
from flowopd_cli.train.routes import Teacher


def run(
    recipe: TeacherRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Rollout, rewards, advantages, objective; the adapter ends in ``adapter/``."""
    drawer, prompts = make_drawer(recipe.prompts, recipe.train, recipe.seed)
    check_tasks(recipe, prompts)
    rewards = make_rewards(recipe.rewards, prompts)
    watch = make_watch(recipe, rewards)
    model = load_model(recipe.model, recipe.adapter.targets)
    roles = Roles(model, adapters or Adapters())
    roles.add_policy(recipe.adapter, recipe.seed)
    prepare(recipe, run, roles, prompts, watch, progress)
    experience = make_experience(recipe, model, drawer, rewards)
    course = Course(f"teacher {'+'.join(r.name for r in recipe.rewards)}", experience, prompts, watch)
    return {"metrics": train_policy(recipe, model, run, progress, course, resume=resume)}


def make_experience(recipe: TeacherRecipe, model: LoadedModel, drawer: Drawer, rewards: RewardMix) -> Experience:
    """Draws and scores the pictures of an iteration, and makes optimizer steps of them as the algorithm does."""
    train, spec, scoring = recipe.train, recipe.forward, partial(in_background, rewards)
    method = _grpo(recipe, model, scoring) if spec is None else _forward(recipe, spec, model, scoring)
    credit = spec or recipe.grpo
    weights = rewards.weights if credit.normalize == "each" else None

    def experience(iteration: int):
        sampler, draw = iteration_sampler(model, recipe, iteration), drawer(iteration)
        rolled = method.grader(sampler, draw)
        redraw = Redraw(partial(method.grader, sampler), draw.partition)
        refilled = partial(redraw.refilled, seeds=partial(drawer.refill_seeds, iteration), most=train.refill)
        rolled, scores = refilled(rolled, collect.scores_of_all(rolled, draw.partition, weights))
        figures = collect.reward_figures(scores)
        if train.resample_flat:
            fresh = partial(drawer.fresh, iteration)
            rolled, replaced = redraw.with_fresh_groups(rolled, scores, fresh, most=train.resample_flat)
            if replaced:
                rolled, scores = refilled(rolled, collect.scores_of_all(rolled, draw.partition, weights))
            figures["resampled_groups"] = float(replaced)
        if train.refill:
            figures["refilled"] = float(redraw.pictures)
        rolled = collect.with_advantages(
            rolled, std=credit.std, clip=credit.adv_clip, partition=draw.partition, scores=scores
        )
        latents = {"latent_norm": latent_norm(rolled.trajectory.final)}
        figures |= collect.means_of_all(latents, draw.partition)
        if not scores.result.valid.any():
            return [], figures
        return method.optimizer_steps(rolled, sampler, draw, iteration), figures

    return experience


@dataclass(frozen=True)
class _Method:
    """What differs between the algorithms: who draws, and the rows of a rollout."""

    grader: collect.Grader
    optimizer_steps: Callable[[Rollout, Sampler, collect.Draw, int], Iterable[MicroBatches]]


def _grpo(recipe: TeacherRecipe, model: LoadedModel, scoring: Callable[[], collect.Scoring]) -> _Method:
    train = recipe.train
    base = Teacher(None, recipe.sampling.guidance) if recipe.grpo.beta else None

    def optimizer_steps(rolled: Rollout, sampler: Sampler, draw: collect.Draw, iteration: int):
        seed = recipe.seed + iteration
        return collect.step_batches(rolled, sampler, train.updates, train.micro, seed, draw.partition)

    keep = "velocities" if recipe.grpo.compares_velocities else "all"
    grader = collect.Grader(model, scoring, train.rollout_batch, base, keep=keep)
    return _Method(grader, optimizer_steps)


def _forward(
    recipe: TeacherRecipe, spec: NFTSpec | AWMSpec, model: LoadedModel, scoring: Callable[[], collect.Scoring]
) -> _Method:
    """DiffusionNFT or AWM; guidance that doubles the batch is for drawing only."""
    train = recipe.train
    model.adapters.copy("policy", forward.SLOW)

    def decay(iterations: int) -> float:
        steps = iterations * cost.updates(recipe)
        return forward.slow_decay(steps, start=spec.slow_start, rate=spec.slow_rate, most=spec.slow_most)

    def optimizer_steps(rolled: Rollout, sampler: Sampler, draw: collect.Draw, iteration: int):
        sigmas = sampler.sigmas[:-1]
        kind = "stratified" if isinstance(spec, AWMSpec) else "permuted"
        levels = forward.choose_levels(draw.seeds, len(sigmas), recipe.levels, kind)
        rows = forward.ForwardRows(
            model,
            rolled,
            draw.seeds,
            sigmas,
            levels,
            guidance=forward_guidance(recipe, model),
            slow=train.updates > 1 or decay(iteration) > 0,
            base=spec.base_weight > 0,
            batch=train.rollout_batch,
        )
        if isinstance(spec, AWMSpec) and train.updates > 1:
            rows = rows.with_likelihoods(spec.power)
        yield from rows.optimizer_steps(train.updates, train.micro, recipe.seed + iteration, draw.partition)
        model.adapters.ema("policy", forward.SLOW, decay(iteration + 1))

    adapter = forward.SLOW if isinstance(spec, NFTSpec) else "policy"
    grader = collect.Grader(model, scoring, train.rollout_batch, adapter=adapter, keep="last")
    return _Method(grader, optimizer_steps)
