"""The questions of a GenEval 2 prompt, one for each of its atoms. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, model_validator

from flowopd_cli.system.validation import Checked, describe

Skill = Literal["object", "attribute", "count", "position", "verb"]
SKILLS: tuple[Skill, ...] = get_args(Skill)
Text = Annotated[str, Field(min_length=1)]


class Atoms(Checked):
    """The fields of a row of GenEval 2: questions with their answers, the skill that each tests, the atomicity.

    ``atom_count`` may be less than the number of questions, because "a" is asked about but is no atom.
    """

    model_config = ConfigDict(frozen=True)

    vqa_list: tuple[tuple[Text, Text], ...] = Field(min_length=1)
    skills: tuple[Skill, ...]
    atom_count: PositiveInt

    @model_validator(mode="after")
    def _one_skill_a_question(self) -> Atoms:
        if len(self.skills) != len(self.vqa_list):
            raise ValueError(f"{len(self.vqa_list)} questions in vqa_list, but {len(self.skills)} skills")
        return self

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Atoms:
        """The atoms of a prompt's metadata. Raises :class:`ValueError`: a field is missing or wrong."""
        try:
            return cls.model_validate(dict(metadata))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{place}: {describe(problem)}" if place else describe(problem)) from error
