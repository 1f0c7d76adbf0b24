"""What GenEval asks of a picture: tags, and the clauses of a prompt's metadata. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


def faulty(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with a prompt's clauses, ``None`` if nothing is: the rules take them as they come."""
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not isinstance(include, list | tuple) or not isinstance(exclude, list | tuple):
        return "include and exclude must be lists of clauses"
    if not include and not exclude:
        return "there is no include or exclude clause"
    for number, clause in enumerate([*include, *exclude]):
        if not isinstance(clause, Mapping) or not isinstance(clause.get("class"), str):
            return "a clause without a class"
        count = clause.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            return f"a count of {count!r} for {clause['class']}"
        if "position" in clause and not _sound_position(clause["position"], min(number, len(include))):
            return f"a position of {clause['position']!r} for {clause['class']}, no relation to an earlier clause"
    return None


def _sound_position(position: Any, earlier: int) -> bool:
    if not isinstance(position, Sequence) or len(position) != 2 or isinstance(position, str):
        return False
    relation, target = position
    return relation in RELATIONS and type(target) is int and 0 <= target < earlier
