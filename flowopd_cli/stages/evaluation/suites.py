"""Suites of a recipe: their names resolved, their rewards made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.requests import Wanted, plan
from flowopd_cli.suites.base import NamedReward, Suite, SuiteGroup
from flowopd_cli.system.paths import is_dir
from flowopd_cli.system.text import suggest


@dataclass(frozen=True)
class Asked:
    """The suites of a recipe, each once, and the groups that some of them came in."""

    suites: tuple[Suite, ...]
    groups: tuple[SuiteGroup, ...] = ()


def load(recipe: EvalRecipe) -> Asked:
    """The suites by name, with their options.

    Raises:
        RecipeError: a name or an option is unknown, or a bar is for none of them.
    """
    spec = recipe.eval
    unknown = sorted(set(spec.options) - set(spec.suites))
    if unknown:
        raise RecipeError(f"eval.options.{unknown[0]}: not among eval.suites{suggest(unknown[0], spec.suites)}")
    suites: dict[str, Suite] = {}
    groups: list[SuiteGroup] = []
    for name in spec.suites:
        made = _make(name, recipe.model.pretrained, spec.options.get(name, {}))
        if isinstance(made, SuiteGroup):
            groups.append(made)
        for suite in made.suites if isinstance(made, SuiteGroup) else (made,):
            _refuse_path(suite.name, suite.folder or suite.name)
            suites.setdefault(suite.name, suite)
    _check_bars([*suites, *(group.name for group in groups)], spec.fail_under)
    return Asked(tuple(suites.values()), tuple(groups))


def check(recipe: EvalRecipe) -> None:
    """Refuse what would fail before the first picture: suites, options, prompts, folders of pictures or scores.

    Raises:
        FlowOPDError: something of it is unknown or missing.
    """
    spec = recipe.eval
    wanted = plan(load(recipe).suites, spec) if spec.import_scores is None else []
    for flag, folder in (("--images", spec.pictures), ("--import-scores", spec.import_scores)):
        if folder is not None and not is_dir(folder):
            raise RecipeError(f"{flag} {folder}: no such folder")
    if spec.pictures is not None:
        PictureFolder(Path(spec.pictures), foreign=True).check(wanted)


def rewards(suites: Sequence[Suite], wanted: Sequence[Wanted]) -> dict[str, Reward]:
    """A reward for each suite, made once where suites share it, and asked whether it can score the prompts."""
    made: list[tuple[Any, Reward]] = []
    found: dict[str, Reward] = {}
    for suite in suites:
        reward = next((reward for source, reward in made if source == suite.reward), None) or _reward(suite)
        made.append((suite.reward, reward))
        found[suite.name] = reward
        reward.check([item.prompt for item in wanted if suite.name in item.suites and item.place.index == 0])
    return found


def judges(recipe: EvalRecipe) -> list[str]:
    """The rewards of the registry that the recipe's suites name."""
    return [suite.reward.name for suite in load(recipe).suites if isinstance(suite.reward, NamedReward)]


def _check_bars(names: Sequence[str], bars: Mapping[str, float]) -> None:
    known = {*names, *(name.split("[")[0] for name in names)}
    for name in bars:
        if name not in known:
            raise RecipeError(f"--fail-under {name}: no such suite is run{suggest(name, sorted(known))}")


def _refuse_path(*names: str) -> None:
    """Suites give files and folders of a run their names, so none may lead elsewhere."""
    for name in names:
        if not name.isprintable() or name.startswith(".") or set("/\\") & set(name):
            raise RecipeError(f"eval.suites: {name!r} cannot be the name of a file: leave out slashes")


def _make(name: str, base: str, options: Mapping[str, Any]) -> Suite | SuiteGroup:
    factory = registry.SUITES.load(registry.suite_name(name, base))
    try:
        return factory(**options)
    except TypeError as error:
        raise RecipeError(f"eval.options.{name}: {error}") from error


def _reward(suite: Suite) -> Reward:
    if not isinstance(suite.reward, NamedReward):
        return suite.reward()
    return make_reward(registry.REWARDS.load(suite.reward.name), suite.reward.name, suite.reward.options)
