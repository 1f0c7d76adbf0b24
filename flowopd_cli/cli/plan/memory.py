"""The memory that a recipe needs on each device. torch is imported when a function is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowopd_cli.recipe import ModelSpec, Recipe, TrainedRecipe
from flowopd_cli.recipe.cost import learning_rows, workload

if TYPE_CHECKING:
    from flowopd_cli.models.memory import Footprint, Needs

GIB = 2**30


def counted_dtype(model: ModelSpec) -> str:
    """The base's dtype; ``auto`` counts as bfloat16 unless the device is a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return "float32" if model.device == "cpu" else "bfloat16"


def footprint(recipe: Recipe, dtype: str | None = None) -> Footprint | None:
    """The footprint of a recipe's base, with its adapter if it trains one; ``None`` if its shape is not known here."""
    from flowopd_cli.models.loading import LoadOptions
    from flowopd_cli.models.memory import measure

    model = recipe.model
    adapter = recipe.adapter if isinstance(recipe, TrainedRecipe) else None
    options = LoadOptions(
        dtype=dtype or counted_dtype(model),
        resolution=model.resolution,
        max_sequence_length=model.max_sequence_length,
        targets=adapter.targets if adapter else (),
    )
    return measure(model.family, model.pretrained, options, adapter.rank if adapter else 0)


def needs(recipe: TrainedRecipe) -> Needs | None:
    """What a training needs; ``None`` if the shape of its base is not known here."""
    from flowopd_cli.models import memory

    base = footprint(recipe)
    return None if base is None else memory.needs(base, workload(recipe))


def figures(recipe: Recipe) -> dict[str, str]:
    """The rows of ``--dry-run`` about memory; none for a recipe that trains nothing."""
    if not isinstance(recipe, TrainedRecipe):
        return {}
    needed = needs(recipe)
    if needed is None:
        return {"memory": f"not known: the shape of {recipe.model.pretrained} is not at hand (give a local folder)"}
    encoding = {"memory: text encoders, before training": size(needed.encoders)}
    dtype, rows = counted_dtype(recipe.model), learning_rows(recipe)
    return {
        "memory counted for": f"{dtype} base, float32 adapters, {rows} rows learning at once",
        **{f"memory: {name}": size(value) for name, value in needed.holding.items()},
        "memory: sampling and labels": size(needed.sampling),
        "memory: learning": size(needed.kept),
        "memory: learning, checkpointed": size(needed.kept_checkpointed),
        **(encoding if needed.encoders else {}),
        "memory in all, without and with checkpointing": " / ".join(
            size(needed.peak(checkpointing=saving)) for saving in (False, True)
        ),
    }


def size(count: int) -> str:
    """Bytes in GiB, or in MiB below a tenth of one."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
