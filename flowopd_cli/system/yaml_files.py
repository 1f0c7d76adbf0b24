"""YAML as recipes use it: the values of YAML 1.2, every key once, no anchors, bounded in depth. No torch here.

PyYAML reads YAML 1.1, where ``yes`` is true, ``010`` is 8, ``1:30`` is 90 and ``1e-4`` is text. Here the scalars are
those of the core schema of YAML 1.2: ``yes`` and ``1:30`` are text, ``010`` is 10, ``1e-4`` is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import yaml
from yaml.constructor import ConstructorError

from flowopd_cli.errors import RecipeError

LARGEST = 256 << 10  # bytes of a file
DEEPEST = 40
MOST_DIGITS = 300  # of an integer; a float holds 308
TYPES = {"null", "bool", "int", "float", "str", "seq", "map"}
_TAG = "tag:yaml.org,2002:"
_CORE = {  # tag, pattern and first characters of the scalars of YAML 1.2 that are not text
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class Place(NamedTuple):
    """A value in a YAML text with its line, counted from 1, and its text as written (of a scalar)."""

    line: int
    value: Any
    text: str


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


def locate(text: str, path: Sequence[str | int]) -> Place | None:
    """The value at a path of keys and indices of a valid YAML text; ``None`` if there is none."""
    loader = _Loader(text)
    node: Any = loader.get_single_node()
    for part in map(str, path):
        if isinstance(node, yaml.MappingNode):
            node = {str(key.value): value for key, value in node.value}.get(part)
        elif isinstance(node, yaml.SequenceNode):
            node = dict(zip(map(str, range(len(node.value))), node.value, strict=True)).get(part)
        else:
            return None
    if node is None:
        return None
    written = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
    return Place(node.start_mark.line + 1, loader.construct_document(node), written)


def dump(tree: Any) -> str:
    """JSON values as YAML; texts that YAML 1.1 or 1.2 would read as something else are quoted."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """``SafeDumper`` that also quotes the texts that :class:`_Loader` reads as numbers."""


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` for the values of JSON, without anchors, which can expand a line to gigabytes."""

    yaml_constructors: ClassVar = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in TYPES
    }
    yaml_implicit_resolvers: ClassVar = {}
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
            key.tag = f"{_TAG}str"
        mapping = super().construct_mapping(node, deep=deep)
        for key in mapping:
            if not isinstance(key, str):
                raise _problem(f"{key!r} is not the name of a field", node)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

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


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"^(?:{_pattern})$"), ["", *_first])


def _problem(text: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, text, place.start_mark)
