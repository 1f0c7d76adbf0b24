"""The loop's surroundings: its sampler, its numbers, its files, and where it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, draw_window
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.models.base import FlowModel, LoadedModel
from flowopd_cli.recipe import ColdstartRecipe, DistillRecipe, SamplingSpec, TeacherRecipe, TrainSpec
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.model import save_adapter
from flowopd_cli.stages.training.recorder import Keeper
from flowopd_cli.stages.training.resume import resume_state, seed_generators
from flowopd_cli.stages.training.samples import make_sample_writer
from flowopd_cli.stages.training.tune import tune
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.loop import Experience, FitSettings, fit
from flowopd_cli.train.objectives import Objective, OPDSettings


def make_sampler(model: FlowModel, spec: SamplingSpec, *, seed: int = 0) -> Sampler:
    """The recipe's sampler; ``seed`` places its SDE window."""
    sigmas = model.sigmas(spec.steps, spec.shift) if spec.shift else model.sigmas(spec.steps)
    window = None
    if spec.window is not None:
        window = draw_window(spec.window.size, spec.window.start_min, spec.window.start_max, seed)
    return Sampler(sigmas, make_kernel(spec.kernel, spec.eta, sigmas), spec.guidance, window)


def opd_settings(recipe: DistillRecipe) -> OPDSettings:
    """The distillation objective's numbers; ODE steps have no variance, so theirs is plain velocity matching."""
    opd = recipe.opd
    weight = "velocity" if recipe.sampling.deterministic else opd.step_weight
    return OPDSettings(opd.estimator, weight, recipe.anchor.beta, opd.clip, opd.adv_clip)


def fit_settings(train: TrainSpec) -> FitSettings:
    """The loop's numbers from a recipe."""
    return FitSettings(
        iterations=train.iterations,
        optimizer=train.optimizer,
        lr=train.lr,
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        skip_limit=train.skip_limit,
        ema_decay=train.ema_decay,
        ema_every=train.ema_every,
        checkpoint_every=train.checkpoint_every,
    )


@dataclass(frozen=True)
class Course:
    """What a training stage has of its own: its name on the screen, experience and objective, prompts for samples."""

    title: str
    experience: Experience
    objective: Objective
    prompts: Mapping[str, Sequence[Prompt]]


def train(
    recipe: TeacherRecipe | ColdstartRecipe | DistillRecipe,
    model: LoadedModel,
    run: RunDir,
    progress: Progress,
    course: Course,
    *,
    resume: bool,
) -> dict[str, Any]:
    """Train ``policy``, from the newest checkpoint on ``resume``, and leave the finished adapter in the run.

    Returns the figures of its metrics that were logged last.
    """
    spec = recipe.train
    tune(model, spec)
    state = resume_state(run, resume, progress)
    progress.start(spec.iterations, course.title, done=state.iteration if state else 0)
    ema = spec.ema_decay > 0
    keeper = Keeper(run, progress, spec, lambda: save_adapter(model, run, recipe.model, ema=ema, best=True))
    hooks = keeper.hooks(make_sample_writer(model, recipe, course.prompts, run), resumed=state is not None)

    def experience(iteration: int):
        seed_generators(recipe.seed, iteration)
        return course.experience(iteration)

    fit(model, experience, course.objective, fit_settings(spec), state=state, hooks=hooks)
    save_adapter(model, run, recipe.model, ema=ema)
    return keeper.figures()
