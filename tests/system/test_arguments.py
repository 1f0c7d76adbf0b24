"""Options by a typed signature: conversion, refusals with their way out, and what stays as read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pytest
import torch
from pydantic import PositiveInt

from flowopd_cli.system.arguments import Options, OptionsOf

if TYPE_CHECKING:
    from nowhere import Unknown


class Reader(Protocol):
    name: str


class Engine(ABC):
    @abstractmethod
    def start(self): ...


@dataclass
class Rules:
    threshold: float = 0.5
    most: int = 16
    words: list[str] = field(default_factory=list)


class Typed:
    def __init__(
        self,
        reader: str | Reader = "auto",
        *,
        engine: Engine | None = None,
        score: Literal["strict", "loose"] = "strict",
        folder: Path | None = None,
        urls: str | Sequence[str] = (),
        exact: bool = False,
        device: torch.device | None = None,
        unknown: Unknown | None = None,
        **options: Annotated[Any, OptionsOf(Rules)],
    ) -> None: ...


def untyped(images, prompts, gain=1, verbose=False): ...


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"threshold": 1e-1, "most": 1e1}, {"threshold": 0.1, "most": 10}),
        ({"threshold": "0.1", "most": "8"}, {"threshold": 0.1, "most": 8}),
        ({"exact": "yes"}, {"exact": True}),
        ({"exact": "off", "score": "loose"}, {"exact": False, "score": "loose"}),
        ({"reader": "rapidocr", "folder": "a/b"}, {"reader": "rapidocr", "folder": Path("a/b")}),
        ({"urls": ["a", "b"]}, {"urls": ["a", "b"]}),
        ({"device": "cuda:1", "unknown": 3}, {"device": "cuda:1", "unknown": 3}),
    ],
)
def test_values_get_the_types_of_the_signature(options, values):
    converted = Options.of(Typed).convert(options)
    assert converted == values
    assert [type(value) for value in converted.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treshold": 1}, "no option 'treshold', did you mean 'threshold'?; options: reader, score, "),
        ({"engine": "v8"}, "no option 'engine'"),
        ({"threshold": "yes"}, "option threshold: Input should be a valid number, not 'yes'"),
        ({"threshold": True}, "option threshold: Input should be a number, not true"),
        ({"most": 1.5}, "option most: Input should be a valid integer, not 1.5"),
        ({"most": None}, "option most: Input should be a valid integer, not null"),
        ({"exact": "maybe"}, "option exact: Input should be a valid boolean, not 'maybe'"),
        ({"score": "lose"}, "option score: Input should be 'strict' or 'loose', not 'lose'"),
        ({"reader": 3}, "option reader: Input should be a valid string, not 3"),
        ({"words": ["a", 3]}, "option words.1: Input should be a valid string, not 3"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(options, message):
    with pytest.raises(ValueError, match="option") as caught:
        Options.of(Typed).convert(options)
    assert str(caught.value).startswith(message)


def test_options_without_a_type_are_passed_as_read_but_a_switch_takes_yes_and_no():
    options = Options.of(untyped, skip=2)
    assert options.convert({"gain": "a lot", "verbose": "no"}) == {"gain": "a lot", "verbose": False}
    assert options.convert({"gain": True, "verbose": "twice"}) == {"gain": True, "verbose": "twice"}
    with pytest.raises(ValueError, match="no option 'prompts'"):
        options.convert({"prompts": 1})


def test_a_function_that_takes_anything_gets_anything():
    assert Options.of(lambda **options: options).convert({"x": "yes"}) == {"x": "yes"}
    assert Options.of(dict).convert({"x": "yes"}) == {"x": "yes"}


def test_a_missing_option_and_a_bound_argument():
    def make(url: str, gain: float, batch: int = 1): ...

    with pytest.raises(ValueError, match="option 'gain' is missing; options: gain, batch"):
        Options.of(partial(make, "http://h")).convert({})
    assert Options.of(partial(make, "http://h")).convert({"gain": 1}) == {"gain": 1.0}


def test_types_and_defaults_are_listed():
    rows = [(o.name, o.type_name, o.required, o.shown_default) for o in Options.of(Typed).named.values()]
    assert rows[:3] == [
        ("reader", "str", False, "auto"),
        ("score", "strict | loose", False, "strict"),
        ("folder", "Path | None", False, None),
    ]
    assert ("words", "list[str]", False, None) in rows


def sized(key: Callable[[float], float] | None = None, counts: tuple[PositiveInt, ...] = (), verbose=False): ...


def test_types_of_callables_annotated_types_and_switches_are_short():
    assert [o.type_name for o in Options.of(sized).named.values()] == ["Callable | None", "tuple[int, ...]", "bool"]


def test_an_option_that_is_a_function_is_refused_from_a_recipe():
    with pytest.raises(ValueError, match="option key: Input should be callable, not 3"):
        Options.of(sized).convert({"key": 3})
