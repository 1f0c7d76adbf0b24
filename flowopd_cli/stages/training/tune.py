"""What a recipe's loop asks of the model: memory against time."""

from __future__ import annotations

from flowopd_cli.errors import RecipeError
from flowopd_cli.models.base import FlowModel
from flowopd_cli.recipe import TrainSpec


def tune(model: FlowModel, train: TrainSpec) -> None:
    """Make the model compute again what there is no room to keep, where the recipe says so.

    Raises:
        RecipeError: the family cannot.
    """
    if not train.gradient_checkpointing:
        return
    checkpoint = getattr(model, "checkpoint_gradients", None)
    if checkpoint is None:
        raise RecipeError("train.gradient_checkpointing: this model family cannot do that; set it to false")
    checkpoint()
