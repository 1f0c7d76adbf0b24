"""What a recipe leaves to names and adapters, settled before it runs, so that the record says what ran. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RecipeError
from flowopd_cli.registry import reward_name, suite_name
from flowopd_cli.runs.adapter_ref import AdapterRef


def with_full_names(recipe: recipes.Recipe) -> recipes.Recipe:
    """Rewards and suites under the registry's own names, so that the recipe in the run says what ran."""
    base = recipe.model.pretrained
    if isinstance(recipe, recipes.EvalRecipe):
        update = {
            "suites": tuple(suite_name(name, base) for name in recipe.eval.suites),
            "options": {suite_name(name, base): value for name, value in recipe.eval.options.items()},
        }
        return recipe.model_copy(update={"eval": recipe.eval.model_copy(update=update)})
    rewards = getattr(recipe, "rewards", ())
    named = tuple(spec.model_copy(update={"name": reward_name(spec.name, base)}) for spec in rewards)
    return recipe.model_copy(update={"rewards": named}) if rewards else recipe


def settle(recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe as it runs: full names, and for a policy that starts from a local adapter that adapter's shape."""
    recipe = with_full_names(recipe)
    if not isinstance(recipe, recipes.TrainedRecipe) or recipe.adapter.init is None:
        return recipe
    shape = AdapterRef.parse(recipe.adapter.init).shape()
    return recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update=shape)})


def remarks(asked: recipes.Recipe, settled: recipes.Recipe, overrides: Sequence[str]) -> list[str]:
    """What :func:`settle` changed, in words.

    Raises:
        RecipeError: a changed field was asked for by ``--set``.
    """
    if not isinstance(asked, recipes.TrainedRecipe) or not isinstance(settled, recipes.TrainedRecipe):
        return []
    one, two = asked.adapter.model_dump(), settled.adapter.model_dump()
    named = {recipes.parse_override(text)[0] for text in overrides}
    changed = [key for key in one if one[key] != two[key]]
    for key in changed:
        if named & {"adapter", f"adapter.{key}"}:
            raise RecipeError(
                f"--set adapter.{key}: the policy starts from {asked.adapter.init}, whose {key} is {_brief(two[key])} "
                "and stays so; leave it out, or start without adapter.init"
            )
    return [f"adapter.{key} is {_brief(two[key])}, as in {asked.adapter.init}" for key in changed]


def _brief(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
