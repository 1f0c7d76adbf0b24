"""The memory that a recipe needs on each device. torch is imported when a function is called."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.workload import Workload
from flowopd_cli.recipe import AdapterSpec, ModelSpec, Recipe, TrainedRecipe
from flowopd_cli.recipe.cost import learning_rows, own_workloads, workload
from flowopd_cli.system.text import gib

if TYPE_CHECKING:
    from flowopd_cli.models.memory import Footprint, Needs


def footprint(recipe: Recipe, dtype: str | None = None) -> Footprint | None:
    """The footprint of a recipe's base, with its adapter if it trains one; ``None`` if the base's shape is unknown.

    Raises :class:`ArtifactError`: the configuration of the base is damaged.
    """
    adapter = recipe.adapter if isinstance(recipe, TrainedRecipe) else None
    return _footprint(recipe.model, adapter, dtype)


def _footprint(model: ModelSpec, adapter: AdapterSpec | None, dtype: str | None = None) -> Footprint | None:
    gc.disable()  # collections would take a third of the time of these imports
    try:
        from flowopd_cli.models.loading import LoadOptions
        from flowopd_cli.models.memory import measure

        options = LoadOptions(
            dtype=dtype or _dtype(model),
            resolution=model.resolution,
            max_sequence_length=model.max_sequence_length,
            targets=adapter.targets if adapter else (),
        )
        return measure(model.family, model.pretrained, options, adapter.rank if adapter else 0)
    finally:
        gc.enable()


def figures(recipe: Recipe) -> dict[str, str]:
    """The rows of ``--dry-run`` about memory; none for a recipe that trains nothing."""
    if not isinstance(recipe, TrainedRecipe):
        return {}
    try:
        needed = training_needs(recipe)
    except ArtifactError as error:
        return {"memory": f"not known: {error}"}
    encoding = {"memory: text encoders, before training": needed.encoders} if needed.encoders else {}
    rows = {
        **{f"memory: {name}": value for name, value in needed.holding.items()},
        "memory: sampling and labels": needed.sampling,
        "memory: learning": needed.activations,
        "memory: learning, checkpointed": needed.activations_checkpointed,
        **encoding,
    }
    peaks = [gib(needed.peak(checkpointing=saving), 2) for saving in (False, True)]
    dtype = _dtype(recipe.model)
    return {
        "memory counted for": f"{dtype} base, float32 adapters, {learning_rows(recipe)} rows learning at once",
        **{name: gib(value, 2) for name, value in rows.items()},
        "memory in all, without and with checkpointing": " / ".join(peaks),
    }


def training_needs(recipe: TrainedRecipe) -> Needs:
    """The memory of a training; adapters of a teacher's own base count as large as the student's.

    Raises :class:`ArtifactError`: the configuration of a base is damaged, or not on this machine.
    """
    counted: list[tuple[Footprint, Workload]] = []
    for model, work in ((recipe.model, workload(recipe)), *own_workloads(recipe).items()):
        base = _footprint(model, recipe.adapter)
        if base is None:
            raise ArtifactError(f"the shape of {model.pretrained} is not at hand (give a local folder)")
        counted.append((base, work))
    from flowopd_cli.models.memory import needs

    return needs(*counted[0], counted[1:])


def _dtype(model: ModelSpec) -> str:
    """The base's dtype; ``auto`` counts as bfloat16 unless the device is a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return "float32" if model.device == "cpu" else "bfloat16"
