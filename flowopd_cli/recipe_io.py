"""Reading recipes and putting values into them: YAML, dotted keys, one-line errors, the shelf of shipped files."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flowopd_cli.errors import RecipeError


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, not yet validated.

    Raises:
        RecipeError: the file is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({_reason(error)})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields, this is {type(data).__name__}")
    return data


def parse_override(expression: str) -> tuple[str, Any]:
    """``a.b=c`` as a dotted key and a YAML value."""
    key, equals, raw = expression.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {expression}: write it as section.field=value")
    try:
        return key.strip(), yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {expression}: the value is not YAML") from error


def find(name: str) -> Path:
    """The path of a shipped recipe such as ``toy/distill``, or of the file ``name`` itself.

    Raises:
        RecipeError: there is no such recipe; near names are suggested.
    """
    direct = Path(name)
    if direct.suffix in {".yaml", ".yml"} or direct.is_file():
        return direct
    shelf = shipped()
    if name in shelf:
        return shelf[name]
    raise RecipeError(f"no recipe {name!r}{suggest(name, list(shelf))}; shipped: {', '.join(sorted(shelf))}")


def shipped() -> dict[str, Path]:
    """Every recipe that came with the program, by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_recipes", here.parent / "recipes"):
        if folder.is_dir():
            return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}
    return {}


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put ``value`` at ``a.b.c`` of a tree of mappings and lists, making missing mappings on the way."""
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = _element(node, part, dotted)
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {dotted}: {part} is a value, not a section")
    if isinstance(node, list):
        _element(node, leaf, dotted)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words: where, what, and for a misspelt key the nearest real one."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"unknown key {'.'.join(path)!r}{suggest(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)}: {message}" if path else message


def suggest(word: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` when some known word is near, else nothing."""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _element(node: list[Any], part: str, dotted: str) -> Any:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(f"--set {dotted}: {part!r} is not an index of a list of {len(node)}")
    return node[int(part)]


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = model
    for part in path:
        inner = getattr(current, "model_fields", {}).get(part)
        if inner is None:
            continue
        current = _spec_in(inner.annotation)
    return list(getattr(current, "model_fields", {}))


def _spec_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _spec_in(argument)
        if found is not None:
            return found
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
