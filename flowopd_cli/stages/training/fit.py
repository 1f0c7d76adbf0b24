"""From a recipe to a running training loop: samplers, settings, resume, and the saved adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, choose_trained_steps, draw_window
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.base import FlowModel, LoadedModel
from flowopd_cli.recipe import AnchorSpec, ColdstartRecipe, DistillRecipe, SamplingSpec, TeacherRecipe, TrainSpec
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.model import save_adapter
from flowopd_cli.stages.training.recorder import RunRecorder
from flowopd_cli.stages.training.resume import resume_state, seed_generators
from flowopd_cli.stages.training.samples import make_sample_writer
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.collect import trained_steps
from flowopd_cli.train.loop import Experience, FitSettings, fit
from flowopd_cli.train.objectives import Objective, OPDSettings


def make_sampler(model: LoadedModel, spec: SamplingSpec, *, seed: int = 0) -> Sampler:
    """The recipe's sampler; ``seed`` places its SDE window."""
    sigmas = model.sigmas(spec.steps, spec.shift) if spec.shift else model.sigmas(spec.steps)
    window = None
    if spec.window is not None:
        window = draw_window(spec.window.size, spec.window.start_min, spec.window.start_max, seed)
    return Sampler(sigmas, make_kernel(spec.kernel, spec.eta, sigmas), spec.guidance, window)


def iteration_sampler(model: LoadedModel, recipe: TeacherRecipe | DistillRecipe, iteration: int) -> Sampler:
    """The sampler of one iteration: its window and trained steps depend on the seed and the iteration alone."""
    seed = recipe.seed + iteration
    sampler = make_sampler(model, recipe.sampling, seed=seed)
    anchor = recipe.anchor if isinstance(recipe, DistillRecipe) else AnchorSpec()
    trained = choose_trained_steps(
        trained_steps(sampler).steps,
        seed,
        steps=recipe.train.steps_per_rollout,
        every=anchor.every,
        probability=anchor.probability,
    )
    return replace(sampler, trained=trained)


def opd_settings(recipe: DistillRecipe) -> OPDSettings:
    """The settings of the distillation objective; ODE steps have no variance, so they match velocities."""
    opd = recipe.opd
    weight = "velocity" if recipe.sampling.deterministic else opd.step_weight
    return OPDSettings(opd.estimator, weight, recipe.anchor.beta, opd.clip, opd.adv_clip)


def fit_settings(train: TrainSpec) -> FitSettings:
    """The loop's settings of a recipe."""
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


def save_memory(model: FlowModel, train: TrainSpec) -> None:
    """Turn on gradient checkpointing where the recipe asks for it.

    Raises:
        RecipeError: the model family does not support it.
    """
    if not train.gradient_checkpointing:
        return
    checkpoint = getattr(model, "checkpoint_gradients", None)
    if checkpoint is None:
        raise RecipeError("train.gradient_checkpointing: this model family cannot do that; set it to false")
    checkpoint()


@dataclass(frozen=True)
class Course:
    """What differs between training stages: title, experience, objective, and the prompts of sample pictures."""

    title: str
    experience: Experience
    objective: Objective
    prompts: Mapping[str, Sequence[Prompt]]


def train_policy(
    recipe: TeacherRecipe | ColdstartRecipe | DistillRecipe,
    model: LoadedModel,
    run: RunDir,
    progress: Progress,
    course: Course,
    *,
    resume: bool,
) -> dict[str, Any]:
    """Train ``policy``, with ``resume`` from the newest checkpoint, and save the adapter in the run.

    Returns the last logged value of each figure.
    """
    spec = recipe.train
    save_memory(model, spec)
    state = resume_state(run, resume, progress)
    progress.start(spec.iterations, course.title, done=state.iteration if state else 0)
    ema = spec.ema_decay > 0

    def export() -> None:
        save_adapter(model, run, recipe.model, ema=ema, best=True)

    def experience(iteration: int):
        seed_generators(recipe.seed, iteration)
        return course.experience(iteration)

    recorder = RunRecorder(run, progress, spec, export, make_sample_writer(model, recipe, course.prompts, run))
    if state is not None:
        recorder.resume()
    fit(model, experience, course.objective, fit_settings(spec), state=state, recorder=recorder)
    save_adapter(model, run, recipe.model, ema=ema)
    return recorder.figures()
