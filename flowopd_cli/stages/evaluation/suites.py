"""The suites of a recipe: loaded by name, their pictures planned, their rewards made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopd_cli import registry
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.rewards.function import convert_options, make_reward
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.listed import plan_listed, read_list
from flowopd_cli.stages.evaluation.requests import Requests, plan
from flowopd_cli.suites.base import NamedReward, Suite, SuiteGroup
from flowopd_cli.system.arguments import Options
from flowopd_cli.system.files import is_dir
from flowopd_cli.system.text import suggest


def plan_requests(recipe: EvalRecipe) -> Requests:
    """Load the suites, read their prompts and plan every picture; checks all that needs no model and no reward."""
    spec = recipe.eval
    suites, groups = _load_suites(recipe)
    for flag, folder in (("--images", spec.pictures), ("--import-scores", spec.import_scores)):
        if folder is not None and not is_dir(folder):
            raise RecipeError(f"{flag} {folder}: no such folder")
    if spec.import_scores is not None:
        return Requests(suites, groups)
    if spec.pictures is not None and spec.pictures_csv is not None:
        listed = read_list(Path(spec.pictures_csv), Path(spec.pictures))
        return plan_listed(suites, groups, spec, listed)
    requests = plan(suites, groups, spec)
    if spec.pictures is not None:
        PictureFolder(Path(spec.pictures), foreign=True).check(requests.pictures)
    return requests


def make_rewards(requests: Requests) -> dict[str, Reward]:
    """The reward of each suite, made once for suites that share it; each checks the prompts of its suite.

    Raises :class:`RecipeError`: it reads pictures by another engine than the one that the suite is named by.
    """
    pairs: list[tuple[Any, Reward]] = []
    rewards: dict[str, Reward] = {}
    for suite in requests.suites:
        reward = next((reward for source, reward in pairs if source == suite.reward), None) or _make_reward(suite)
        if suite.engine and reward.engine and not reward.engine.startswith(suite.engine):
            own = f"is read by {suite.engine}, {reward.info.name} reads by {reward.engine}"
            raise RecipeError(f"suite {suite.name}: {own}: name its reader, --set eval.options.SUITE.reader=NAME")
        pairs.append((suite.reward, reward))
        rewards[suite.name] = reward
        reward.check([r.prompt for r in requests.pictures if suite.name in r.suites and r.place.index == 0])
    return rewards


def reward_names(recipe: EvalRecipe) -> list[str]:
    """The registered rewards that the recipe's suites name."""
    return [suite.reward.name for suite in _load_suites(recipe)[0] if isinstance(suite.reward, NamedReward)]


def check_options(recipe: EvalRecipe) -> None:
    """Refuse options that a suite or its reward does not take; rewards are imported, but not made.

    Raises :class:`RecipeError` or :class:`RewardError`: an option is unknown, missing or of another type.
    """
    for reward in (suite.reward for suite in _load_suites(recipe)[0]):
        if isinstance(reward, NamedReward) and not registry.REWARDS.is_code(reward.name):
            convert_options(registry.REWARDS.load(reward.name), reward.name, reward.options)


def _load_suites(recipe: EvalRecipe) -> tuple[tuple[Suite, ...], tuple[SuiteGroup, ...]]:
    spec = recipe.eval
    unknown = sorted(set(spec.options) - set(spec.suites))
    if unknown:
        raise RecipeError(f"eval.options.{unknown[0]}: not among eval.suites{suggest(unknown[0], spec.suites)}")
    suites: dict[str, Suite] = {}
    groups: list[SuiteGroup] = []
    for name in spec.suites:
        loaded = _load_suite(name, recipe.model.pretrained, spec.options.get(name, {}))
        if isinstance(loaded, SuiteGroup):
            groups.append(loaded)
        for suite in loaded.suites if isinstance(loaded, SuiteGroup) else (loaded,):
            for file_name in (suite.name, suite.picture_folder):  # which must not lead out of the run
                if not file_name.isprintable() or file_name.startswith(".") or set("/\\") & set(file_name):
                    raise RecipeError(f"eval.suites: {file_name!r} cannot be the name of a file: leave out slashes")
            suites.setdefault(suite.name, suite)
    names = [*suites, *(group.name for group in groups)]
    known = {*names, *(name.split("[")[0] for name in names)}
    for name in spec.fail_under:
        if name not in known:
            raise RecipeError(f"--fail-under {name}: that suite is not run{suggest(name, sorted(known))}")
    return tuple(suites.values()), tuple(groups)


def _load_suite(name: str, base: str, options: Mapping[str, Any]) -> Suite | SuiteGroup:
    factory = registry.SUITES.load(registry.SUITES.on_base(name, base))
    try:
        return factory(**Options.of(factory).convert(options))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"eval.options.{name}: {error}") from error


def _make_reward(suite: Suite) -> Reward:
    if not isinstance(suite.reward, NamedReward):
        return suite.reward()
    return make_reward(registry.REWARDS.load(suite.reward.name), suite.reward.name, suite.reward.options)
