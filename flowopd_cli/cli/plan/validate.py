"""All faults of a recipe file, and the cost of the recipe. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan import Finding, memory
from flowopd_cli.cli.plan.check import RECIPE, Check, collect, findings, repeated_prompts
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import FlowOPDError, RecipeError
from flowopd_cli.recipe.cost import arithmetic

HEADLINES = ("optimizer steps", "pictures in all", "teacher pictures drawn", "memory", "memory in all")


@dataclass(frozen=True)
class Validation:
    """The result for one recipe: its faults, notes and arithmetic."""

    name: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stage: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        lists = {"faults": self.faults, "notes": self.notes, "arithmetic": self.figures}
        return {"recipe": self.name, "ok": not self.faults, "stage": self.stage, **lists}

    def lines(self) -> Iterator[str]:
        """As text: faults, notes, then optimizer steps, pictures and memory."""
        count = len(self.faults)
        yield f"{self.name}: {f'{count} fault' + 's' * (count > 1) if count else 'ok'}"
        yield from (f"  {fault}" for fault in self.faults)
        yield from (f"  note: {note}" for note in self.notes)
        for key, value in self.figures.items():
            if key.partition(",")[0] in HEADLINES:
                yield f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value}"


def validate(name: str) -> Validation:
    """Parse a shipped recipe or a file, and run the checks of ``--dry-run``; faults are returned, not raised.

    Missing adapters and packages are notes.
    """
    try:
        path = recipes.find(name)
        tree = recipes.read(path)
    except RecipeError as error:
        return Validation(name, (str(error),))
    try:
        recipe = Plan.of(recipes.build(tree, where=str(path))).recipe
    except FlowOPDError as error:
        cause, model = error.__cause__, recipes.STAGES.get(str(tree.get("stage")))
        form = recipes.faults(cause, model, str(path)) if model and isinstance(cause, ValidationError) else [str(error)]
        faults, notes = _split(collect(_name_checks(tree)))
        return Validation(name, tuple(dict.fromkeys([*form, *faults])), notes, tree["stage"] if model else None)
    faults, notes = _split(findings(recipe))
    return Validation(name, faults, notes, recipe.stage, {} if faults else arithmetic(recipe) | memory.figures(recipe))


def _split(findings: Iterable[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    texts: dict[bool, list[str]] = {True: [], False: []}
    for finding in findings:
        texts[finding.state == "fail" and finding.name == RECIPE].append(str(finding))
    return tuple(texts[True]), tuple(texts[False])


def _name_checks(tree: Mapping[str, Any]) -> Iterator[Check]:
    """Check the names in a malformed recipe, where they are texts."""
    base = next(_texts(tree, "model", "pretrained"), recipes.ModelSpec().pretrained)
    for name in _texts(tree, "model", "family"):
        yield partial(registry.MODELS.check, name)
    for name in _texts(tree, "rewards", "*", "name"):
        yield partial(registry.REWARDS.check, registry.REWARDS.on_base(name, base))
    for name in _texts(tree, "eval", "suites", "*"):
        yield partial(registry.SUITES.check, registry.SUITES.on_base(name, base))
    for entry in _values(tree, "prompts", "*"):
        for source in _texts(entry, "source"):
            yield partial(repeated_prompts, recipes.PromptSpec(source=source, task=next(_texts(entry, "task"), None)))


def _texts(tree: Any, *path: str) -> Iterator[str]:
    return (value for value in _values(tree, *path) if isinstance(value, str))


def _values(tree: Any, *path: str) -> Iterator[Any]:
    """The values at a path of keys; ``*`` matches every element of a list."""
    if not path:
        yield tree
    elif path[0] == "*":
        for element in tree if isinstance(tree, list) else ():
            yield from _values(element, *path[1:])
    elif isinstance(tree, Mapping) and path[0] in tree:
        yield from _values(tree[path[0]], *path[1:])
