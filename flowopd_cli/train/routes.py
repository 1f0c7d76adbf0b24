"""Teachers, and the target that a task's teachers give a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.targets import extrapolated, shares
from flowopd_cli.models.base import FlowModel


@dataclass(frozen=True)
class Teacher:
    """An adapter that labels trajectories, with the guidance it was trained for.

    ``model`` is a base of its own, ``None`` the student's; its latents, grid and path are the student's, and it encodes
    the prompts itself.
    """

    adapter: str | None
    guidance: float
    model: FlowModel | None = None


Target = tuple[tuple[Teacher, float], ...]  # teachers with weights: the target velocity is the weighted sum of theirs


def sole(teacher: Teacher) -> Target:
    """The target that is one teacher's velocity."""
    return ((teacher, 1.0),)


def student_base(teacher: Teacher) -> Teacher:
    """The student's base at a teacher's guidance."""
    return Teacher(None, teacher.guidance)


@dataclass(frozen=True)
class Route:
    """A task's teachers with their weights; ``extrapolate`` takes their sum beyond itself, away from the base.

    Weights are relative; a text names the entry of a prompt's metadata that has the weight.
    """

    teachers: tuple[tuple[Teacher, float | str], ...]
    extrapolate: float = 1.0

    def target(self, prompt: Prompt) -> Target:
        """The teachers of a prompt, and the base where it has a weight; :class:`PromptError` if a weight is invalid."""
        parts = shares([weight for _, weight in self.teachers], prompt)
        weights: dict[Teacher, float] = {}
        for (teacher, _), share in zip(self.teachers, parts, strict=True):
            weights[teacher] = weights.get(teacher, 0.0) + share
        return tuple(extrapolated(weights, student_base, self.extrapolate).items())
