"""From a recipe to a running training loop and the saved adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.base import FlowModel, LoadedModel
from flowopd_cli.recipe import TrainedRecipe, TrainSpec, cost
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.model import save_adapter
from flowopd_cli.stages.training.objective import make_objective
from flowopd_cli.stages.training.recorder import RunRecorder
from flowopd_cli.stages.training.resume import resume_state
from flowopd_cli.stages.training.samples import make_sample_writer
from flowopd_cli.stages.training.watch import Watch
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import is_intact
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.loop import Experience, FitSettings, fit


def save_memory(model: FlowModel, train: TrainSpec) -> None:
    """Turn on gradient checkpointing if the recipe asks for it; :class:`RecipeError` if the family has none."""
    if train.gradient_checkpointing:
        if not hasattr(model, "checkpoint_gradients"):
            raise RecipeError("train.gradient_checkpointing: this model family cannot do that; set it to false")
        model.checkpoint_gradients()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Course:
    """What differs between training stages: title, experience, the prompts of sample pictures, the watch if any."""

    title: str
    experience: Experience
    prompts: Mapping[str, Sequence[Prompt]]
    watch: Watch | None = None


def train_policy(
    recipe: TrainedRecipe, model: LoadedModel, run: RunDir, progress: Progress, course: Course, *, resume: bool
) -> dict[str, Any]:
    """Train ``policy``, save the adapter in the run, and return the last logged value of each figure.

    If ``train.stop`` ends the training, the adapter is that of the best checkpoint, where there is one.
    """
    spec = recipe.train
    save_memory(model, spec)
    state = resume_state(run, resume, progress)
    progress.start(spec.iterations, course.title, done=state.iteration if state else 0)
    export = partial(save_adapter, model, run, recipe)
    draw_samples = make_sample_writer(model, recipe, course.prompts, run)
    observe = None if course.watch is None else partial(course.watch, model)
    recorder = RunRecorder(run, progress, spec, partial(export, best=True), draw_samples, observe)
    if state is not None:
        recorder.resume()
    numbers = {f.name: getattr(spec, f.name) for f in fields(FitSettings)}
    settings = FitSettings(**{**numbers, "updates": cost.updates(recipe)})
    objective = make_objective(recipe, model)
    state = fit(model, course.experience, objective, settings, state=state, recorder=recorder)
    with GROUP.together():  # the first process alone knows the rows, and writes
        if recorder.ends():
            best = recorder.best()
            if best is not None:
                state = _load_best(run, best)
                state.restore_adapters(model)
                export(state.step, best=True)
            progress.note(f"the adapter is that of {f'checkpoint {best}, the best' if best else 'the last iteration'}")
    export(state.step)
    return recorder.figures()


def _load_best(run: RunDir, step: int) -> TrainState:
    """The state of the best checkpoint; :class:`ArtifactError` if it is damaged."""
    folder = run.checkpoints.path(step)
    if not is_intact(folder):
        raise ArtifactError(
            f"{folder}: train.stop ends the training with this checkpoint, the best, but it is damaged; remove it and "
            "--resume to end with the next best"
        )
    return TrainState.load(folder)
