"""Study files: a chain of stages, for every combination of axis values and seeds. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe.fields import Seed, Spec
from flowopd_cli.recipe.reading import faults, read
from flowopd_cli.system.text import suggest

SEED, EVALUATION = "seed", "evaluation"
RESERVED = (SEED, EVALUATION, "run", "cpu_seconds")  # columns of the results
_REFERENCE = re.compile(r"\$([A-Za-z][\w-]*)(?:/.*)?", re.ASCII)
_SCALAR = (str, int, float, bool, type(None))


def _check_axis(axis: Any) -> Any:
    """A list of different scalars, or overrides by the name of a value and by stage."""
    if isinstance(axis, list) and axis and all(isinstance(value, _SCALAR) for value in axis):
        if len(set(map(repr, axis))) < len(axis):
            raise ValueError("the same value is there twice")
        return axis
    if not isinstance(axis, dict) or not axis:
        raise ValueError("write a list of values, or a mapping NAME: {STAGE: {FIELD: VALUE}}")
    for name, stages in axis.items():
        if not isinstance(stages, dict) or not all(isinstance(fields, dict) for fields in stages.values()):
            raise ValueError(f"{name}: write the overrides of each stage as {{STAGE: {{FIELD: VALUE}}}}")
    return axis


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Axis = Annotated[Any, AfterValidator(_check_axis)]


class StageSpec(Spec):
    """A stage of a study; which command it is, its recipe says."""

    recipe: str  #: a name of `recipes ls`, or a YAML file
    #: fields of the recipe by dotted keys; the value `$NAME` is that of an axis, the seed, or the run of a stage, and
    #: `$NAME/best` the adapter of its best checkpoint
    set: dict[str, Any] = Field(default_factory=dict)


class StudySpec(Spec):
    """A study: a chain of stages, for every combination of axis values and seeds."""

    seeds: tuple[Seed, ...] = Field((0,), min_length=1)  #: each is the `seed` of all stages but evaluations
    #: values by the name of an axis: a list, or a mapping of named overrides `NAME: {STAGE: {FIELD: VALUE}}`
    axes: dict[Name, Axis] = Field(default_factory=dict)
    stages: dict[Name, StageSpec] = Field(min_length=1)  #: by name; evaluations make the results
    #: the cell that others are compared with: values of axes, and `evaluation`; null is the first
    reference: dict[str, Any] | None = None

    def values(self, axis: str) -> list[Any]:
        """The values of an axis, or their names."""
        return list(self.axes[axis])

    def overrides(self, stage: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The fields that a stage sets, then those that the ``values`` of axes set in it."""
        named = [self.axes[axis][value] for axis, value in values.items() if isinstance(self.axes[axis], dict)]
        return [
            pair for fields in (self.stages[stage].set, *(v.get(stage, {}) for v in named)) for pair in fields.items()
        ]

    def parents(self, stage: str) -> list[str]:
        """The stages whose runs a stage refers to with any of the axis values."""
        return self.stages_in(self._written(stage))

    def stages_in(self, value: Any) -> list[str]:
        """The stages that a tree of values refers to."""
        return [name for name in dict.fromkeys(references(value)) if name in self.stages]

    def uses(self, stage: str) -> list[str]:
        """The axes that a stage depends on, by its own fields or those of its ancestors."""
        own = {axis for axis in self.axes if axis in references(self._written(stage)) or axis in self._setters(stage)}
        own.update(axis for parent in self.parents(stage) for axis in self.uses(parent))
        return [axis for axis in self.axes if axis in own]

    def _setters(self, stage: str) -> list[str]:
        named = {axis: values for axis, values in self.axes.items() if isinstance(values, dict)}
        return [axis for axis, values in named.items() if any(stage in stages for stages in values.values())]

    def _written(self, stage: str) -> list[Any]:
        named = [stages.get(stage) for axis in self._setters(stage) for stages in self.axes[axis].values()]
        return [self.stages[stage].set, *named]

    @model_validator(mode="after")
    def _names_exist(self) -> StudySpec:
        names = [*self.axes, *self.stages, SEED]
        for axis, values in self.axes.items():
            if axis in self.stages or axis in RESERVED:
                raise ValueError(f"axes.{axis}: the name belongs to {'a stage' if axis in self.stages else 'a column'}")
            for stage in [stage for stages in values.values() for stage in stages] if isinstance(values, dict) else ():
                if stage not in self.stages:
                    raise ValueError(f"axes.{axis}: no stage {stage!r}{suggest(stage, list(self.stages))}")
        for stage in self.stages:
            for name in references(self._written(stage)):
                if name not in names:
                    raise ValueError(
                        f"stages.{stage}: ${name} is no axis, no stage and not $seed{suggest(name, names)}"
                    )
        try:
            TopologicalSorter({stage: self.parents(stage) for stage in self.stages}).prepare()
        except CycleError as error:
            raise ValueError(
                f"stages: each of {' -> '.join(reversed(error.args[1]))} needs the one after it"
            ) from error
        unused = set(self.axes).difference(*map(self.uses, self.stages))
        if unused:
            raise ValueError(f"axes.{min(unused)}: no stage uses it: write ${min(unused)} as the value of a field")
        return self

    @model_validator(mode="after")
    def _reference_is_a_cell(self) -> StudySpec:
        for key, value in (self.reference or {}).items():
            if key not in {*self.axes, EVALUATION}:
                raise ValueError(f"reference.{key}: no such axis{suggest(key, [*self.axes, EVALUATION])}")
            choices = list(self.stages) if key == EVALUATION else self.values(key)
            if value not in choices:
                raise ValueError(f"reference.{key}: {value!r} is none of {', '.join(map(repr, choices))}")
        return self


def references(value: Any) -> Iterator[str]:
    """The names that a tree of values refers to as ``$NAME`` or ``$NAME/PATH``."""
    if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
        yield match[1]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from references(part)


def replace_leaves(value: Any, names: Mapping[str, Any]) -> Any:
    """A tree of values in which each text that is a key of ``names``, or a path below one, is replaced."""
    if isinstance(value, dict):
        return {key: replace_leaves(part, names) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_leaves(part, names) for part in value]
    head, slash, rest = value.partition("/") if isinstance(value, str) else ("", "", "")
    new = names.get(head, value)
    return f"{new}/{rest}" if slash and head in names else new


def load_study(path: Path) -> StudySpec:
    """Read a study. Raises :class:`RecipeError`: the file is missing or not YAML, a key or name in it is unknown."""
    tree = read(path)
    try:
        return StudySpec.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(faults(error, StudySpec, str(path))[0]) from error
