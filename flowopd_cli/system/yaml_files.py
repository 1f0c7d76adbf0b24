"""YAML as recipes use it: plain values, every key once, no anchors, bounded in depth. No torch here."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from flowopd_cli.errors import RecipeError

LARGEST = 256 << 10  # bytes of a file
DEEPEST = 40
MOST_DIGITS = 300  # of an integer; a float holds 308
TYPES = {"null", "bool", "int", "float", "str", "seq", "map"}


def parse(text: str, where: str) -> Any:
    """The value of a YAML text: mappings with text keys, lists, texts, numbers, booleans, ``None``; dates stay texts.

    Tags, anchors, a key twice and deep nesting are a :class:`RecipeError` that begins with ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{line}: not YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: is nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` for the values of JSON, without anchors, which can expand a line to gigabytes."""

    yaml_constructors: ClassVar = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in TYPES
    }
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _problem("anchors (&name, *name) are not supported: write the value out", event)
        if self.depth > DEEPEST:
            raise _problem("the value is nested too deeply", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise _problem(f"the key {key.value[:40]!r} is there twice", key)
            keys.add(key.value)
        mapping = super().construct_mapping(node, deep=deep)
        for key in mapping:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise _problem(f"{key!r} is not the name of a field", node)
        return {str(key): value for key, value in mapping.items()}

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:  # PyYAML does not catch the errors of int and float
            value = super().construct_object(node, deep=deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise _problem(f"{str(node.value)[:40]!r} is not a valid {node.tag.rpartition(':')[2]}", node) from error
        if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            raise _problem(f"the integer has more than {MOST_DIGITS} digits", node)
        if isinstance(value, float) and math.isnan(value):
            raise _problem(".nan is not a value of any field", node)
        if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise _problem(f"{value[:40]!r} has a NUL or half a surrogate pair", node)
        return value


def _problem(text: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, text, place.start_mark)
