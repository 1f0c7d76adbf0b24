"""What a training does with its prompts and inputs before its first iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.recipe import DistillRecipe, ModelSpec, TrainedRecipe
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.lengths import check_lengths
from flowopd_cli.stages.training.model import Roles, encode_ahead
from flowopd_cli.stages.training.resume import prompts_digest
from flowopd_cli.stages.training.watch import Watch
from flowopd_cli.system.progress import Progress


def prepare(
    recipe: TrainedRecipe,
    run: RunDir,
    roles: Roles,
    prompts: Mapping[str, Sequence[Prompt]],
    watch: Watch | None,
    progress: Progress,
) -> None:
    """Check the lengths of all prompts, declare the run's inputs, then encode the prompts.

    A base that teachers have of their own reads the prompts of its tasks.
    """
    trained, watched = [*chain.from_iterable(prompts.values())], [*(watch.draw.prompts if watch else ())]
    check_lengths(recipe, roles.model, trained, progress, watched=watched)
    tasks = {own: _tasks(recipe, own) for own in roles.bases}
    for own, base in roles.bases.items():
        if not (isinstance(roles.model, PipelineModel) and base.prompts is roles.model.prompts):
            parts = ([prompt for prompt in part if prompt.task in tasks[own]] for part in (trained, watched))
            check_lengths(recipe, base, next(parts), progress, watched=next(parts), base=own.pretrained)
    run.declare(roles.inputs(recipe.model, prompts_digest(prompts)))
    encode_ahead(roles.model, [*trained, *watched])
    for own, base in roles.bases.items():
        encode_ahead(base, [prompt for prompt in (*trained, *watched) if prompt.task in tasks[own]])


def _tasks(recipe: TrainedRecipe, own: ModelSpec) -> set[str]:
    """The tasks with a teacher on a base of its own."""
    mixtures = recipe.mixtures if isinstance(recipe, DistillRecipe) else {}
    return {
        task
        for task, mixture in mixtures.items()
        if any(spec.own_model(recipe.model) == own for spec in mixture.values())
    }
