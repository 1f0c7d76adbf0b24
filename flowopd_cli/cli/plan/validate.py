"""Everything that is wrong with a recipe file, and what the recipe would cost. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan import memory
from flowopd_cli.cli.plan.check import Check, checks, collect, rows_of
from flowopd_cli.cli.plan.consent import code_fields
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import FlowOPDError, MissingDependency, RecipeError
from flowopd_cli.recipe.cost import arithmetic

Parsed = TypeVar("Parsed", bound=BaseModel)
# The figures of the arithmetic that are shown first.
HEADLINES = ("optimizer steps", "pictures in all", "teacher pictures drawn", "memory", "memory in all")


@dataclass(frozen=True)
class Validation:
    """The result for one recipe: its faults, remarks and arithmetic."""

    name: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stage: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def headlines(self) -> dict[str, Any]:
        """Optimizer steps, pictures and memory, as far as the stage has them."""
        return {key: value for key, value in self.figures.items() if key.partition(",")[0] in HEADLINES}


def validate(name: str) -> Validation:
    """Parse and check a shipped recipe or a file with the checks of ``--dry-run``; nothing is raised.

    An adapter that does not exist yet and a package that is not installed are notes.
    """
    try:
        path = recipes.find(name)
        tree = recipes.read(path)
    except RecipeError as error:
        return Validation(name, (str(error),))
    try:
        recipe = Plan.of(recipes.build(tree, where=str(path))).recipe
    except FlowOPDError as error:
        faults, notes = _split(collect(_name_checks(tree)))
        return Validation(name, tuple(dict.fromkeys([*_problems(error, tree), *faults])), tuple(notes), _stage(tree))
    faults, notes = _split(collect(checks(recipe, dry_run=True)))
    notes += [f"{field}: {text} is code: it runs with --allow-code only" for field, text in code_fields(recipe)]
    figures = {} if faults else arithmetic(recipe) | memory.figures(recipe)
    return Validation(name, tuple(faults), tuple(notes), recipe.stage, figures)


def _split(results: Iterable[FlowOPDError | str]) -> tuple[list[str], list[str]]:
    """Faults and notes."""
    faults: list[str] = []
    notes: list[str] = []
    for result in results:
        is_note = isinstance(result, str | MissingDependency)
        (notes if is_note else faults).append(str(result))
    return faults, notes


def _stage(tree: Mapping[str, Any]) -> str | None:
    stage = tree.get("stage")
    return stage if isinstance(stage, str) and stage in recipes.STAGES else None


def _problems(error: FlowOPDError, tree: Mapping[str, Any]) -> Iterator[str]:
    """Every problem that the validation found; the error itself shows the first."""
    cause, stage = error.__cause__, _stage(tree)
    if isinstance(cause, ValidationError) and stage is not None:
        yield from recipes.problems(cause, recipes.STAGES[stage])
    else:
        yield str(error)


def _name_checks(tree: Mapping[str, Any]) -> Iterator[Check]:
    """Checks of the names in a recipe that does not parse, as far as each is a name."""
    model = _section(tree, "model")
    base = str(model.get("pretrained", recipes.ModelSpec().pretrained))
    yield partial(registry.MODELS.check, str(model.get("family", recipes.ModelSpec().family)))
    for reward in _specs(recipes.RewardSpec, tree.get("rewards"), ("name",)):
        yield partial(registry.REWARDS.check, registry.REWARDS.on_base(reward.name, base))
    for name in _list(_section(tree, "eval").get("suites")):
        if isinstance(name, str):
            yield partial(registry.SUITES.check, registry.SUITES.on_base(name, base))
    for prompts in _specs(recipes.PromptSpec, tree.get("prompts"), ("source", "task")):
        yield partial(_read, prompts)


def _read(prompts: recipes.PromptSpec) -> None:
    rows_of(prompts)


def _specs(kind: type[Parsed], entries: Any, keys: Sequence[str]) -> Iterator[Parsed]:
    """The names alone of a list's entries, without what may be wrong beside them."""
    for entry in _list(entries):
        with suppress(ValidationError):
            if isinstance(entry, Mapping):
                yield kind.model_validate({key: entry[key] for key in keys if key in entry})


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
