"""DPG-Bench's rules (Hu et al. 2024, arXiv 2403.05135): yes-or-no questions that depend on one another.

No torch here: the environment of the worker gets a copy of this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

YES = "yes"


class Question(BaseModel, frozen=True):
    """A question about a picture; ``parents`` are the ids of the questions that it depends on."""

    id: int
    question: str
    parents: tuple[int, ...] = ()
    category: str = ""


_QUESTIONS = TypeAdapter(tuple[Question, ...])


def read_questions(metadata: Mapping[str, Any]) -> tuple[Question, ...]:
    """The ``questions`` of a prompt's metadata; ``ValueError`` if there are none, or one is not valid."""
    try:
        questions = _QUESTIONS.validate_python(metadata.get("questions", ()))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"questions.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    if not questions:
        raise ValueError("no questions in its metadata: those of the suite dpg-bench have them")
    return questions


def grade(questions: Sequence[Question], answers: Mapping[int, str]) -> tuple[float | None, dict[str, Any]]:
    """The share of questions that count in one picture, and a report of the answers.

    A question counts if its answer is ``yes`` and its parents count. Questions are taken in their order, as in the
    reference: one that fails also fails its children's children, but for those that come before their parents.
    A picture has no score if a question depends on one that is not asked; the reference leaves it out likewise.
    """
    report: dict[str, Any] = {"answers": {str(question.id): answers[question.id] for question in questions}}
    counts = {question.id: answers[question.id] == YES for question in questions}
    absent = next(((q.id, p) for q in questions for p in q.parents if p not in counts), None)
    if absent is not None:
        return None, {**report, "error": "question {} depends on question {}, which is not asked".format(*absent)}
    yes: dict[str, list[int]] = {}
    for question in questions:
        verdicts = yes.setdefault(question.category, [0, 0])
        verdicts[0] += counts[question.id]
        verdicts[1] += 1
    for question in questions:
        counts[question.id] = counts[question.id] and all(counts[parent] for parent in question.parents)
    return sum(counts.values()) / len(counts), {**report, "categories": yes}


def category_shares(categories: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, float]:
    """The share of ``yes`` by category, first of level 1 (``L1 entity``), then of level 2 (``L2 entity - whole``).

    ``categories`` has one report of :func:`grade` for each prompt: yes answers and questions by category of level 2.
    """
    sums: dict[str, list[int]] = {}
    for report in categories:
        for category, (yes, questions) in report.items():
            for name in (f"L1 {category.split('-')[0].strip()}", f"L2 {category}"):
                total = sums.setdefault(name, [0, 0])
                total[0] += yes
                total[1] += questions
    return {name: yes / questions for name, (yes, questions) in sorted(sums.items())}
