"""pydantic models that take no boolean for a number, and their errors in words. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator

SHOWN = 80


class Checked(BaseModel):
    """A model that refuses ``true`` and ``false`` where a number is expected, which pydantic reads as 1 and 0."""

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_booleans(cls.model_fields[str(info.field_name)].annotation, value)
        return value


def refuse_booleans(annotation: Any, value: Any) -> None:
    """Raise ``ValueError`` if a type has numbers but no booleans, and the value is a boolean or contains one."""
    types = list(_types(annotation))  # a signature of Callable has no hash
    takes_numbers = (int in types or float in types) and bool not in types and Any not in types
    if takes_numbers and any(isinstance(part, bool) for part in _elements(value)):
        raise ValueError(f"Input should be a number, not {str(value).lower()}")


def describe(problem: Mapping[str, Any], written: str | None = None) -> str:
    """A problem of pydantic's in words, with the refused value, as ``written`` in a file if that is known."""
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if problem["type"] in {"value_error", "missing"} or isinstance(value, Mapping | list | tuple):
        return message
    message = re.sub(r", (unable to|got a number) .*", "", message)
    return f"{message}, not {written or ('null' if value is None else repr(value))}"[: 3 * SHOWN]


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    arguments = get_args(annotation)
    yield from (part for argument in arguments for part in _types(argument)) if arguments else (annotation,)


def _elements(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else (value,)
    yield from parts
