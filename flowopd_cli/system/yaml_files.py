"""YAML as recipes use it: plain values, every key once, no anchors, bounded in size and depth. No torch here."""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from flowopd_cli.errors import RecipeError

LARGEST = 256 << 10
DEEPEST = 40
MOST_DIGITS = 300  # of a whole number; a float holds 308


def parse(text: str, where: str) -> Any:
    """The value that a YAML text holds: mappings with text keys, lists, texts, numbers, booleans, ``None``.

    Dates are texts as they are written. ``where`` begins the message of an error.

    Raises:
        RecipeError: not YAML, YAML that does more than name values (tags, anchors, a key twice), or too large.
    """
    if len(text) > LARGEST:
        raise RecipeError(f"{where}: has more than {LARGEST >> 10} KiB, which no recipe has")
    try:
        return _plain(yaml.load(text, Loader=_Loader), where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{line}: not YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: is nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` without anchors, which can make gigabytes of a line, and with one value for each key."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _problem("anchors (&name, *name) are not read: write the value out", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _problem(f"the key {key.value[:40]!r} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:  # PyYAML lets out whatever int and float raise over a scalar
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise _problem(f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}", node) from error


# A date stays the text that it is written as.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _problem(text: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, text, place.start_mark)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """The value, if it holds JSON's kinds of values alone."""
    if depth > DEEPEST:
        raise RecipeError(f"{where}: is nested too deeply")
    if isinstance(value, dict):
        return {_key(key, where): _plain(inner, where, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, where, depth + 1) for inner in value]
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise RecipeError(f"{where}: holds a number of more than {MOST_DIGITS} digits")
    if isinstance(value, float) and math.isnan(value):
        raise RecipeError(f"{where}: holds .nan, which is no value of any field")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise RecipeError(
        f"{where}: holds a value of the kind {type(value).__name__}; write texts, numbers, lists, mappings"
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return _text(str(key), where)
    raise RecipeError(f"{where}: {key!r} is no name of a field")


def _text(text: str, where: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RecipeError(f"{where}: holds a NUL or half a surrogate pair: {text[:40]!r}")
    return text
