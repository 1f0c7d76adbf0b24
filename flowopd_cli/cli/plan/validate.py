"""What is wrong with a recipe file, all of it, and what the recipe would cost; what a shipped one is. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan import check as preflight
from flowopd_cli.cli.plan.resolve import Plan, complete_names
from flowopd_cli.errors import FlowOPDError, MissingDependency, RecipeError
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.recipe.reading import problems

Parsed = TypeVar("Parsed", bound=BaseModel)
# Of the batch arithmetic what is told first.
HEADLINES = ("optimizer steps", "pictures in all", "teacher pictures drawn", "memory", "memory in all")


@dataclass(frozen=True)
class Examined:
    """A recipe by the name it was asked for: what is wrong with it (nothing: ``ok``), remarks, its arithmetic."""

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
        """Optimizer steps, pictures and memory, as far as its stage has them."""
        return {key: value for key, value in self.figures.items() if key.partition(",")[0] in HEADLINES}


def examine(name: str) -> Examined:
    """Parse and resolve a shipped recipe or a file; whatever is wrong is told, nothing is raised.

    Looked at is what ``--dry-run`` looks at: an adapter may still be to come, and a package that is not installed here
    is a remark.
    """
    try:
        path = recipes.find(name)
        tree = recipes.read(path)
    except RecipeError as error:
        return Examined(name, (str(error),))
    try:
        recipe = complete_names(recipes.build(tree, where=str(path)))
    except RecipeError as error:
        faults, notes = _checked(_names(tree))
        return Examined(name, tuple(dict.fromkeys([*_all_of(error, tree), *faults])), tuple(notes), _stage(tree))
    faults, notes = _checked(_checks(recipe))
    return Examined(
        name, tuple(faults), tuple(notes), recipe.stage, {} if faults else arithmetic(Plan.of(recipe).recipe)
    )


def about(name: str, path: Path) -> dict[str, str]:
    """A shipped recipe's name, stage, base and the first sentence of its head comment.

    Raises:
        RecipeError: it is damaged.
    """
    tree = recipes.read(path)
    base = (tree.get("model") or {}).get("pretrained") or recipes.ModelSpec().pretrained
    return {"recipe": name, "stage": str(tree.get("stage")), "base": str(base), "what": _first_sentence(path)}


def _first_sentence(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    head: list[str] = []
    for line in lines:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        head.append(text)
    return " ".join(head).partition(". ")[0].rstrip(".")


def _stage(tree: dict[str, Any]) -> str | None:
    found = tree.get("stage")
    return found if isinstance(found, str) and found in recipes.STAGES else None


def _all_of(error: RecipeError, tree: dict[str, Any]) -> Iterator[str]:
    """Every problem that the validation met, where the error shows the first."""
    cause, stage = error.__cause__, _stage(tree)
    if isinstance(cause, ValidationError) and stage is not None:
        yield from problems(cause, recipes.STAGES[stage])
    else:
        yield str(error)


def _checked(checks: Iterable[Callable[[], list[str] | None]]) -> tuple[list[str], list[str]]:
    """Faults and remarks; each name is looked up, whatever another one is."""
    faults: dict[str, None] = {}
    notes: list[str] = []
    for check in checks:
        try:
            notes += check() or []
        except MissingDependency as error:
            notes.append(str(error))
        except FlowOPDError as error:
            faults[str(error)] = None
    return list(faults), notes


def _checks(recipe: recipes.Recipe) -> Iterator[Callable[[], list[str] | None]]:
    yield partial(registry.MODELS.check, recipe.model.family)
    for spec in getattr(recipe, "rewards", ()):
        yield partial(registry.REWARDS.check, spec.name)
    for name in recipe.eval.suites if isinstance(recipe, recipes.EvalRecipe) else ():
        yield partial(registry.SUITES.check, name)
    for spec in getattr(recipe, "prompts", ()):
        yield partial(_read, spec)
    yield partial(preflight.check, recipe, dry_run=True)


def _names(tree: Mapping[str, Any]) -> Iterator[Callable[[], list[str] | None]]:
    """Checks of the names in a recipe that does not parse, as far as each is a name."""
    model = _section(tree, "model")
    base = str(model.get("pretrained", recipes.ModelSpec().pretrained))
    yield partial(registry.MODELS.check, str(model.get("family", recipes.ModelSpec().family)))
    for entry in _entries(tree.get("rewards")):
        spec = _parsed(recipes.RewardSpec, entry, ("name",))
        if spec is not None:
            yield partial(registry.REWARDS.check, registry.reward_name(spec.name, base))
    for name in filter(_is_text, _listed(_section(tree, "eval").get("suites"))):
        yield partial(registry.SUITES.check, registry.suite_name(name, base))
    for entry in _entries(tree.get("prompts")):
        source = _parsed(recipes.PromptSpec, entry, ("source", "task"))
        if source is not None:
            yield partial(_read, source)


def _parsed(kind: type[Parsed], entry: Mapping[str, Any], keys: Sequence[str]) -> Parsed | None:
    """An entry's names alone, without what may be wrong beside them."""
    with suppress(ValidationError):
        return kind.model_validate({key: entry[key] for key in keys if key in entry})
    return None


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in _listed(value) if isinstance(entry, Mapping)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _read(spec: recipes.PromptSpec) -> None:
    preflight.rows_of(spec)
