"""Code named by a recipe file runs only with ``--allow-code``; naming it on the command line is consent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe, Recipe, parse_override, reward_fields
from flowopd_cli.registry import REWARDS
from flowopd_cli.system.redact import leaves


def code_fields(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The fields of a recipe that name code as ``module:attr``, with the name."""
    for field, spec in reward_fields(recipe):
        if REWARDS.is_code(spec.name):
            yield f"{field}.name", spec.name
    for field, value in leaves(recipe.eval.options) if isinstance(recipe, EvalRecipe) else ():
        if isinstance(value, str) and REWARDS.is_code(value):
            yield f"eval.options, {field}", value


def check_consent(recipe: Recipe, where: str, rewards: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse code that the recipe file ``where`` names, unless ``--reward`` or ``--set`` names it too.

    Raises :class:`RecipeError`, which names the field and ``--allow-code``.
    """
    values = [parse_override(text)[1] for text in overrides]
    typed = {*rewards, *(value for _, value in leaves(values) if isinstance(value, str))}
    for field, name in code_fields(recipe):
        if name not in typed:
            raise RecipeError(f"{where}: {field}: {name} is code; a recipe may only run it with --allow-code")
