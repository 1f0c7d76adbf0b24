"""The options of a function or class, typed by its signature: checked and converted, or listed. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python

from flowopd_cli.system.text import suggest
from flowopd_cli.system.validation import describe, refuse_booleans

REQUIRED = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _read_switch(value: Any) -> Any:
    return {"yes": True, "on": True, "no": False, "off": False}.get(str(value).lower(), value)


_SWITCH = Annotated[Any, BeforeValidator(_read_switch)]  # a parameter without a type whose default is a boolean


class OptionsOf:
    """Marks ``**options: Annotated[Any, OptionsOf(f)]``, which takes the options of ``f``: a function or a class."""

    def __init__(self, *targets: Callable[..., Any]) -> None:
        self.targets = targets


@dataclass(frozen=True)
class Option:
    """A parameter that a recipe can set; ``type`` is ``Any`` for one that is not annotated."""

    name: str
    type: Any
    default: Any = REQUIRED

    def convert(self, value: Any) -> Any:
        """The value in the option's type. Raises :class:`ValueError`: it is not of that type."""
        if self.default is not REQUIRED and value is self.default:
            return value
        refuse_booleans(self.type, value)
        return TypeAdapter(self.type).validate_python(value)

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def shown_default(self) -> Any:
        """The default as a JSON value, ``None`` where it is none or not known."""
        return to_jsonable_python(None if self.required else self.default, fallback=lambda value: None)

    @property
    def type_name(self) -> str:
        """The type as Python writes it; the choices of a ``Literal``, separated by bars."""
        return _type_name(self.type)


@dataclass
class Options:
    """The options of a function by name; ``others`` is the type of any further ones, ``None`` where there are none."""

    named: dict[str, Option] = field(default_factory=dict)
    others: Any = None

    @classmethod
    def of(cls, target: Callable[..., Any], *, skip: int = 0) -> Options:
        """The options that the signature declares, without the ``skip`` first parameters."""
        options = cls()
        try:
            parameters = list(inspect.signature(target).parameters.values())[skip:]
        except (TypeError, ValueError):  # of code in C, which takes what it takes
            return cls(others=Any)
        for parameter in parameters:
            hint = _hint(parameter, target)
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                options._add_others(hint)
            elif parameter.kind in _NAMED and (kind := _settable(hint)) is not NoneType:
                kind = _SWITCH if kind is Any and isinstance(parameter.default, bool) else kind
                options.named[parameter.name] = Option(parameter.name, kind, parameter.default)
        return options

    def _add_others(self, hint: Any) -> None:
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, OptionsOf)]
        if not marks:
            self.others = _settable(hint)
        for other in (Options.of(target) for mark in marks for target in mark.targets):
            self.named = {**self.named, **{n: option for n, option in other.named.items() if n not in self.named}}
            self.others = self.others or other.others

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values in the types of their options.

        Raises :class:`ValueError`: an option is unknown, missing or of another type; the message names it.
        """
        known = ", ".join(self.named) or "none"
        for name, option in self.named.items():
            if option.default is REQUIRED and name not in values:
                raise ValueError(f"option {name!r} is missing; options: {known}")
        converted = {}
        for name, value in values.items():
            if name not in self.named and self.others is None:
                raise ValueError(f"no option {name!r}{suggest(name, list(self.named))}; options: {known}")
            try:
                converted[name] = self.named.get(name, Option(name, self.others)).convert(value)
            except ValidationError as error:
                problem = error.errors()[0]
                place = ".".join(map(str, (name, *problem["loc"]))) if len(error.errors()) == 1 else name
                raise ValueError(f"option {place}: {describe(problem)}") from error
            except ValueError as error:
                raise ValueError(f"option {name}: {error}") from error
        return converted


def _hint(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    """The type of a parameter; ``Any`` where it has none, or one that cannot be resolved."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    function: Any = target.func if isinstance(target, partial) else target
    function = inspect.unwrap(function.__init__ if isinstance(function, type) else function)

    def holder() -> None: ...

    holder.__annotations__ = {parameter.name: parameter.annotation}
    try:
        return get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[parameter.name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _settable(hint: Any) -> Any:
    """The part of a type that a recipe can give, without interfaces; ``NoneType`` where there is nothing else."""
    if get_origin(hint) in (Union, UnionType):
        members = [part for part in get_args(hint) if _settable(part) is not NoneType or part is NoneType]
        return Union[tuple(map(_settable, members))]  # noqa: UP007 -- of a computed tuple
    if getattr(hint, "_is_protocol", False) or inspect.isabstract(hint):
        return NoneType
    try:
        TypeAdapter(hint)
    except PydanticUserError:
        return Any
    return hint


def _type_name(kind: Any) -> str:
    if kind is _SWITCH:
        return "bool"
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if get_origin(kind) is Callable:
        return "Callable"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(kind)))
    name = {NoneType: "None", ...: "..."}.get(kind) or getattr(kind, "__name__", str(kind))
    return f"{name}[{', '.join(map(_type_name, get_args(kind)))}]" if get_args(kind) else name
