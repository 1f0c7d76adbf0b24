"""From a study to its runs: every combination's recipes, checked, each under a name made of its content. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.check import adapter_refs, check
from flowopd_cli.cli.plan.consent import check_consent
from flowopd_cli.cli.plan.resolve import complete_names
from flowopd_cli.errors import FlowOPDError, RecipeError
from flowopd_cli.models.files.pipelines import base_fingerprint
from flowopd_cli.recipe.study import SEED, StudySpec, replace_leaves
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import AVERAGE
from flowopd_cli.system.files import is_dir, is_file, sha256_file


@dataclass(frozen=True)
class Node:
    """One run of a study. Its recipe names ``parents``, other nodes, in place of the paths of their runs.

    ``name`` is the stage's kind and a digest of the recipe, of the nodes below and of all inputs from outside.
    """

    name: str
    stage: str
    label: str
    recipe: recipes.Recipe
    parents: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its name, and what it is."""
        return f"{self.name}  {self.label}".rstrip()

    def recipe_in(self, store: Path) -> recipes.Recipe:
        """The recipe with the paths of the parents' runs in the folder of all runs."""
        paths = {name: str(store / name) for name in self.parents}
        return type(self.recipe).model_validate(replace_leaves(self.recipe.model_dump(mode="json"), paths))


@dataclass(frozen=True)
class Cell:
    """An evaluation at one combination of axis values and seed: ``nodes`` by stage, the evaluation's own last."""

    evaluation: str
    values: Mapping[str, Any]
    seed: int
    nodes: Mapping[str, str]

    @property
    def node(self) -> str:
        """The node of its evaluation."""
        return self.nodes[self.evaluation]


@dataclass(frozen=True)
class Grid:
    """All nodes of a study by name, parents first, and its cells."""

    nodes: Mapping[str, Node]
    cells: tuple[Cell, ...]

    def needed(self, cells: tuple[Cell, ...]) -> list[Node]:
        """The nodes of some cells, parents first."""
        names = {name for cell in cells for name in cell.nodes.values()}
        return [node for name, node in self.nodes.items() if name in names]


def expand(study: StudySpec, where: str) -> Grid:
    """The nodes and cells of a study from the file ``where``.

    Raises :class:`RecipeError`: a recipe or a field is unknown, a value is out of range, or no stage is an evaluation.
    """
    trees = {stage: _read(spec.recipe, f"{where}: stages.{stage}") for stage, spec in study.stages.items()}
    evaluations = [stage for stage, tree in trees.items() if tree.get("stage") == "eval"]
    if not evaluations:
        raise RecipeError(f"{where}: stages: none is an evaluation, so there are no results: add one of toy/eval")
    nodes: dict[str, Node] = {}
    node_names: dict[tuple[Any, ...], str] = {}

    def make(stage: str, combination: Mapping[str, Any], seed: int, members: dict[str, str]) -> str:
        """The name of the node of a stage; it and its ancestors are added to ``members``."""
        values = {axis: combination[axis] for axis in study.uses(stage)}
        place = f"{where}: stages.{stage}"
        seeded = [] if stage in evaluations else [(SEED, seed)]
        tree = _assign(trees[stage], [*seeded, *study.overrides(stage, values)], place)
        parents = {name: make(name, combination, seed, members) for name in study.stages_in(tree)}
        key = (stage, repr(values), seed)
        if key not in node_names:
            names = {f"${name}": value for name, value in {**values, SEED: seed, **parents}.items()}
            recipe = _build(replace_leaves(tree, names), place)
            node_names[key] = f"{recipe.stage}-{_digest(recipe, tuple(parents.values()))}"
            label = describe(stage, {**values, SEED: seed})
            nodes.setdefault(node_names[key], Node(node_names[key], stage, label, recipe, tuple(parents.values())))
        members[stage] = node_names[key]
        return node_names[key]

    cells = []
    for stage in evaluations:
        axes = study.uses(stage)
        for values in product(*map(study.values, axes)):
            combination = dict(zip(axes, values, strict=True))
            for seed in study.seeds:
                make(stage, combination, seed, members := {})
                cells.append(Cell(stage, combination, seed, members))
    _check_columns(study, nodes, where)
    return Grid(nodes, tuple(cells))


def describe(stage: str, values: Mapping[str, Any]) -> str:
    """``student: lambda 1.25, seed 0``."""
    return f"{stage}: {', '.join(f'{name} {value}' for name, value in values.items())}".removesuffix(": ")


def check_nodes(grid: Grid, where: str, *, allow_code: bool) -> list[str]:
    """Check every node as its command would, before anything runs; returns remarks.

    Raises :class:`RecipeError`: names the stage and the fault.
    """
    remarks: dict[str, None] = {}
    for node in grid.nodes.values():
        place, recipe = f"{where}: stages.{node.stage}", node.recipe
        try:
            for field, ref in adapter_refs(recipe):
                if ref.partition("/")[0] not in node.parents and AdapterRef.parse(ref).absent:
                    raise RecipeError(f"{field}: {ref}: no such run, and no stage: write $NAME for that of a stage")
            if not allow_code:
                check_consent(recipe, place, (), ())
            texts = check(recipe, dry_run=True)
        except FlowOPDError as error:
            raise RecipeError(f"{place}: {str(error).removeprefix(f'{place}: ')}") from error
        texts = [text for text in texts if not any(parent in text for parent in node.parents)]
        remarks |= {f"{node.stage}: {text}": None for text in texts}
    return list(remarks)


def _read(name: str, place: str) -> dict[str, Any]:
    try:
        return recipes.read(recipes.find(name))
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from error


def _assign(tree: dict[str, Any], fields: Sequence[tuple[str, Any]], place: str) -> dict[str, Any]:
    """A copy of a recipe's tree with other fields."""
    tree = deepcopy(tree)
    try:
        for field, value in fields:
            recipes.assign(tree, field, deepcopy(value))  # a later field may change a part of it
    except RecipeError as error:
        raise RecipeError(f"{place}: {str(error).removeprefix('--set ')}") from error
    return tree


def _build(tree: Mapping[str, Any], place: str) -> recipes.Recipe:
    try:
        recipe = complete_names(recipes.build(tree, where=place))
    except FlowOPDError as error:
        raise RecipeError(f"{place}: {str(error).removeprefix(f'{place}: ')}") from error
    if isinstance(recipe, recipes.PushRecipe):
        raise RecipeError(f"{place}: push publishes; it is no stage of a study")
    return recipe


def _digest(recipe: recipes.Recipe, parents: tuple[str, ...]) -> str:
    """Digest of a recipe and of what it reads: base, adapters from outside, prompt files. Parents are in the recipe."""
    inputs = [_base_digest(recipe.model.pretrained)]
    outside = [ref for _, ref in adapter_refs(recipe) if ref.partition("/")[0] not in parents]
    inputs += [AdapterRef.parse(ref).resolve().sha256 for ref in outside if Path(ref).exists()]
    inputs += [sha256_file(Path(s.source)) for s in getattr(recipe, "prompts", ()) if is_file(s.source)]
    return recipes.digest({"recipe": recipe.model_dump(mode="json"), "inputs": inputs})


@cache
def _base_digest(name: str) -> str:
    folder = Path(registry.base_source(name)) if name in registry.BASES.names() or is_dir(name) else None
    return base_fingerprint(folder) if folder is not None and is_file(folder / "model_index.json") else ""


def _check_columns(study: StudySpec, nodes: Mapping[str, Node], where: str) -> None:
    """Refuse axes with the name of a suite, which is a column of the results."""
    specs = [node.recipe.eval for node in nodes.values() if isinstance(node.recipe, recipes.EvalRecipe)]
    suites = {name.removeprefix("toy-") for spec in specs for name in spec.suites} | {AVERAGE}
    for axis in suites & set(study.axes):
        raise RecipeError(f"{where}: axes.{axis}: the name belongs to a suite, a column of the results; choose another")
